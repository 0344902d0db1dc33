"""The Triton quantisers on a GPU, byte for byte beside ``formats``."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.formats import scale_layout

pytest.importorskip("triton", reason="triton is not installed: torch for CUDA brings it")

from flashinfer_perf.kernels.quantize import FP8_CONVERSION
from flashinfer_perf.kernels.quantize_tuning import DEFAULT, QuantizeTiling
from tests.kernels.quantised import BLOCKS, Case, differences, every_amax, every_pattern

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FORMATS = tuple(BLOCKS)
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
GLOBAL_SCALES = (1.0, 0.37, 2688 / 4.3, 1e-3, 5e5, 3e37, 1e-38)
INTEGER_AND_INSTRUCTION = [False, True]


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(sum(shape)), device="cuda").to(dtype)


def conversions(name: str) -> list[bool]:
    """What ``hardware`` can be: both ways to convert to FP8, where the GPU has both."""
    has = torch.cuda.get_device_capability() >= FP8_CONVERSION
    return INTEGER_AND_INSTRUCTION if name == "mxfp8" and has else [False]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", scale_layout.LAYOUTS)
@pytest.mark.parametrize("make", [every_pattern, lambda dtype, name: every_amax(dtype, name)])
def test_every_number_and_every_amax(name, dtype, layout, make):
    x = (make(dtype) if make is every_pattern else make(dtype, name)).cuda()
    scales = GLOBAL_SCALES if name == "nvfp4" else (1.0,)
    for whole in (True, False):
        tiles = DEFAULT[name]._replace(whole=whole)
        cases = [Case(name, x, layout, tiles, scale, hardware=way) for scale in scales for way in conversions(name)]
        assert [differences(case) for case in cases] == [(0, 0)] * len(cases)


def test_a_wrong_element_is_noticed():
    assert differences(Case("mxfp8", normal(8, 64), "linear", spoilt=True)) > (0, 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", scale_layout.LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (127, 1056), (130, 160), (300, 4096), (4096, 7168)])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_shapes_that_fill_no_tile(name, layout, shape, dtype):
    x = normal(*shape, dtype=dtype)
    for alignment in (32, 64, 256) if name == "mxfp8" else (32,):
        assert differences(Case(name, x, layout, alignment=alignment)) == (0, 0)


@pytest.mark.parametrize(
    "tiles",
    [QuantizeTiling(rows, blocks, 4, True, parts) for rows in (1, 8, 64) for blocks in (4, 64) for parts in (1, 3)],
)
@pytest.mark.parametrize("name", FORMATS)
def test_tilings(name, tiles):
    for layout in scale_layout.LAYOUTS:
        assert differences(Case(name, normal(200, 1056), layout, tiles)) == (0, 0)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_a_batch_is_padded_entry_by_entry(scale):
    for shape in ((1, 1, 16), (3, 65, 80), (8, 256, 2048)):
        assert differences(Case("nvfp4", normal(*shape), "128x4", global_scale=scale)) == (0, 0)


@pytest.mark.parametrize("layout", scale_layout.LAYOUTS)
def test_shuffled_rows(layout):
    for shape in ((32, 64), (96, 64), (1024, 7168)):
        assert differences(Case("nvfp4", normal(*shape), layout, global_scale=0.37, shuffled=True)) == (0, 0)


def test_more_elements_than_32_bits_count():
    """The last rows of 2^31 elements and more, of which only those are compared."""
    from flashinfer_perf.formats import mxfp4
    from flashinfer_perf.kernels.quantize import quantize_mxfp4

    rows, columns = (1 << 15) + 128, 1 << 16
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    x[-128:] = normal(128, columns)
    values = torch.empty(rows, columns // 2, dtype=torch.uint8, device="cuda")
    scales = torch.empty(rows, columns // 32, dtype=torch.uint8, device="cuda")
    quantize_mxfp4(x, values, scales, "linear")
    expected = mxfp4.encode(x[-128:])
    assert torch.equal(values[-128:], expected.packed)
    assert torch.equal(scales[-128:], expected.scales)
