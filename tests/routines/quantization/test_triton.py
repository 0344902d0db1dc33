"""What our Triton kernels are called with; ``tests/kernels`` and ``tests/gpu`` ask what they do."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.formats import mxfp4, mxfp8, nvfp4, scale_layout, shuffle
from flashinfer_perf.kernels import quantize
from tests.routines.harness import assert_passes, launch_of, run, unconditional

CASES = [
    ("mxfp8_quantize", ""),
    ("mxfp8_quantize", "--no_sf_swizzled_layout --alignment 64 --input_dtype float16"),
    *(("mxfp4_quantize", f"--sf_layout {layout}") for layout in scale_layout.LAYOUTS),
    *(("nvfp4_quantize", f"--sf_layout {layout} --global_scale 3.7") for layout in scale_layout.LAYOUTS),
    ("nvfp4_quantize", "--m 128 --do_shuffle"),
    ("nvfp4_batched_quantize", "--batch_size 3 --global_scale 500"),
]


def written(x_q, sf, encoded, layout):
    elements, scales = encoded
    assert (x_q.is_contiguous(), sf.is_contiguous(), sf.dtype) == (True, True, torch.uint8)
    x_q.view(torch.uint8).copy_(elements.view(torch.uint8))
    sf.copy_(scale_layout.arrange(scales, layout).view(sf.shape))


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins with the kernels' parameters, which compute by ``formats``."""

    def quantize_mxfp8(x, x_q, sf, layout):
        written(x_q, sf, mxfp8.encode(x, 32), layout)

    def quantize_mxfp4(x, x_q, sf, layout):
        written(x_q, sf, mxfp4.encode(x), layout)

    def quantize_nvfp4(x, x_q, sf, global_scale, layout, *, shuffled=False):
        encoded = nvfp4.encode(x, global_scale)
        written(x_q, sf, map(shuffle.shuffle_rows, encoded) if shuffled else encoded, layout)

    for stand_in in (quantize_mxfp8, quantize_mxfp4, quantize_nvfp4):
        monkeypatch.setattr(quantize, stand_in.__name__, stand_in)


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_the_kernel_gets_outputs_of_the_documented_shapes(kernels, name, flags):
    with unconditional(name, "triton"):
        assert_passes(run(name, f"--m 5 --k 64 {flags}", "triton"))


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_outputs_are_accepted_by_the_kernel_itself(monkeypatch, name, flags):
    """Everything but the launch: shapes, dtypes, alignment."""
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: launched.append(grid)

    monkeypatch.setattr(quantize, "quantize_blocks", Kernel())
    launch, _ = launch_of(name, "triton", f"--m 5 --k 64 {flags}")
    launch()
    assert len(launched) == 1
