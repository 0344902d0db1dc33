"""Which tiles a mixture gets."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe import tuning
from flashinfer_perf.kernels.moe.tuning import HopperTiles, ProductTiles, Tiles, Tuned, tiles_for
from flashinfer_perf.kernels.moe.weights import ExpertFormat


@pytest.mark.parametrize("format", list(ExpertFormat))
def test_more_rows_have_blocks_of_more(format):
    rows = [tiles_for(format, count, (0, 0)).rows for count in (1 / 32, 4, 5, 24, 25, 1e6)]
    assert rows == [16, 16, 32, 32, 64, 64]


def test_a_gpu_that_was_tuned_for_has_its_own(monkeypatch):
    own = Tiles(128, 1, ProductTiles(64, 64, 4, 2), ProductTiles(64, 64, 4, 2))
    monkeypatch.setitem(tuning.BY_CAPABILITY, (9, 9), {ExpertFormat.BF16: (Tuned(float("inf"), own),)})
    assert tiles_for(ExpertFormat.BF16, 1, (9, 9)) == own
    assert tiles_for(ExpertFormat.NVFP4, 1, (9, 9)) == tiles_for(ExpertFormat.NVFP4, 1, (0, 0))


@pytest.mark.parametrize("format", list(ExpertFormat))
def test_hopper_has_its_own_kernel_for_many_rows_in_all_but_nvfp4(format):
    few, many = (tiles_for(format, rows, (9, 0)) for rows in (16, 128))
    assert isinstance(few, Tiles)
    assert isinstance(many, HopperTiles) == (format is not ExpertFormat.NVFP4)


def test_what_was_measured_serves_the_loads_next_to_it():
    loads = [1 / 32, 1 / 4, 2, 16, 128]
    for entries in tuning.BY_CAPABILITY[9, 0].values():
        for own, following, entry in zip(loads, loads[1:], entries, strict=False):
            assert own < entry.most_rows < following
