"""Which tiles a mixture gets."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe import tuning
from flashinfer_perf.kernels.moe.tuning import ProductTiles, Tiles, Tuned, tiles_for
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
