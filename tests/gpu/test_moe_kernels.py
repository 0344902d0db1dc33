"""The fused mixture in Triton on a GPU, beside fp32 mathematics over the decoded weights; and routing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: torch for CUDA brings it")

from flashinfer_perf.kernels.moe.activations import ACTIVATIONS
from flashinfer_perf.kernels.moe.experts import OLDEST
from flashinfer_perf.kernels.moe.tuning import HopperProduct, HopperTiles, ProductTiles, Tiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat
from tests.kernels.moe.mixture import Mixture, relative_error
from tests.kernels.moe.routed import Routed, cases, faults

SUPPORTED = torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SUPPORTED, reason="needs an NVIDIA GPU of compute capability 8.9 or later"),
]
hopper = pytest.mark.skipif(
    not SUPPORTED or torch.cuda.get_device_capability() != (9, 0), reason="needs a GPU of compute capability 9.0"
)
ROUNDINGS = 2**-8
"""Relative: a product and a sum are rounded to bf16, by 2^-9 at most."""
FP8_SUMS = 2**-7
"""Hopper sums products of FP8 with some 14 bits: 2^-14 of the largest sum to an instruction, and an intermediate value
that lies between two numbers of FP8 may go to the other."""
OTHER_SCALE = 2**0.5 * 0.026
"""A scale that is found in the call is that of the largest intermediate value, rounded to 16 bits. Another order of
sums may round it the other way; another scale then rounds every element of the tensor, row or block elsewhere. So
results may be apart by what FP8 itself costs, 2.6 % (root mean square, relative), in two independent roundings."""
EXTRA = Tiles(64, 8, ProductTiles(64, 128, 4, 3), ProductTiles(64, 128, 4, 3), extra=64)
R1 = Mixture(ExpertFormat.BF16, experts=32, top_k=8, hidden=1792, intermediate=512)
"""DeepSeek-R1's, a quarter in size and an eighth in experts."""


@pytest.fixture(autouse=True)
def exact_fp32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def tolerance(mixture: Mixture) -> float:
    if not mixture.format.fp8:
        return ROUNDINGS
    return ROUNDINGS + (FP8_SUMS if mixture.static else OTHER_SCALE)


@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("format", list(ExpertFormat))
def test_every_format_and_load(format, tokens):
    mixture = R1._replace(format=format, tokens=tokens, calls=2)
    assert relative_error(mixture, "cuda") < tolerance(mixture)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", list(ExpertFormat))
def test_blocks_with_extra_rows(format, dtype):
    loads = (70, 0, 85, 100, 120, 300)
    mixture = R1._replace(format=format, experts=len(loads), tokens=sum(loads), loads=loads, top_k=1, tiles=EXTRA)
    assert relative_error(mixture._replace(dtype=dtype), "cuda") < tolerance(mixture)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    assert relative_error(R1._replace(activation=activation, tokens=16), "cuda") < tolerance(R1)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": ExpertFormat.FP8_TENSOR, "static": True},
        {"format": ExpertFormat.FP8_TENSOR, "per_token": True},
        {"format": ExpertFormat.FP8_CHANNEL, "per_token": False},
        {"format": ExpertFormat.FP8_BLOCK, "quantised": True},
        {"format": ExpertFormat.FP8_CHANNEL, "on_input": True, "top_k": 1},
        {"format": ExpertFormat.NVFP4, "offset": 8, "local": 8},
        {"format": ExpertFormat.NVFP4, "dtype": torch.float16},
        {"format": ExpertFormat.NVFP4, "hidden": 960, "intermediate": 192},
        {"format": ExpertFormat.BF16, "hidden": 720, "intermediate": 336},
    ],
)
def test_scales_local_experts_and_ragged_sizes(changed):
    mixture = R1._replace(tokens=50, **changed)
    assert relative_error(mixture, "cuda") < tolerance(mixture)


@pytest.mark.parametrize("format", list(ExpertFormat))
def test_a_changed_weight_is_noticed(format):
    mixture = R1._replace(format=format, tokens=16, spoilt=True)
    assert relative_error(mixture, "cuda") > 10 * tolerance(mixture)


THREE = HopperTiles(3, 4, HopperProduct(128, 4), HopperProduct(128, 4))
TWO = THREE._replace(parts=2)
WIDE = HopperTiles(2, 2, HopperProduct(256, 4), HopperProduct(256, 3))
HAVE_ONE = [format for format in ExpertFormat if format is not ExpertFormat.NVFP4]
"""Formats with a kernel of Hopper's own."""
LOADS = (70, 0, 85, 128, 64, 300, 1, 193)
"""Parts that are full, or not; tiles with one part, two, three; experts with more rows than a tile, and with none."""


@hopper
@pytest.mark.parametrize("changed", [{}, {"static": True}, {"quantised": True}, {"activation": "Relu2"}, {"tokens": 5}])
@pytest.mark.parametrize("tiles", [THREE, TWO, WIDE])
@pytest.mark.parametrize("format", HAVE_ONE)
def test_hoppers_own_kernel(format, tiles, changed):
    if format is ExpertFormat.BF16 and {"static", "quantised"} & set(changed):
        pytest.skip("16-bit weights take no quantised rows")
    if format is ExpertFormat.FP8_BLOCK and (tiles is WIDE or "static" in changed):
        pytest.skip("tiles of 256 columns and scales that are given are none of block scales'")
    mixture = R1._replace(format=format, tokens=300, tiles=tiles, calls=2)._replace(**changed)
    assert relative_error(mixture, "cuda") < tolerance(mixture)


@hopper
@pytest.mark.parametrize("tiles", [THREE, TWO])
@pytest.mark.parametrize("format", HAVE_ONE)
def test_hoppers_own_kernel_with_every_load(format, tiles):
    mixture = R1._replace(format=format, experts=len(LOADS), tokens=sum(LOADS), loads=LOADS, top_k=1, tiles=tiles)
    assert relative_error(mixture, "cuda") < tolerance(mixture)


@hopper
@pytest.mark.parametrize(
    "changed",
    [
        {"format": ExpertFormat.FP8_BLOCK, "dtype": torch.float16, "offset": 8, "local": 8},
        {"format": ExpertFormat.FP8_BLOCK, "on_input": True, "top_k": 1},
        {"format": ExpertFormat.FP8_CHANNEL, "hidden": 720, "intermediate": 336},
        {"format": ExpertFormat.FP8_CHANNEL, "hidden": 720, "intermediate": 336, "tiles": WIDE},
        {"format": ExpertFormat.FP8_TENSOR, "per_token": True},
        {"format": ExpertFormat.BF16, "dtype": torch.float16, "offset": 8, "local": 8},
        {"format": ExpertFormat.BF16, "on_input": True, "top_k": 1},
        {"format": ExpertFormat.BF16, "hidden": 720, "intermediate": 336, "tiles": WIDE},
    ],
)
def test_hoppers_own_kernel_with_local_experts_and_ragged_sizes(changed):
    mixture = R1._replace(tokens=300, tiles=THREE)._replace(**changed)
    assert relative_error(mixture, "cuda") < tolerance(mixture)


@hopper
@pytest.mark.parametrize("format", HAVE_ONE)
def test_hoppers_own_kernel_shows_a_changed_weight(format):
    mixture = R1._replace(format=format, tokens=300, tiles=THREE, spoilt=True)
    assert relative_error(mixture, "cuda") > 10 * tolerance(mixture)


@pytest.mark.parametrize("label", cases())
def test_routing(label):
    assert faults(cases()[label], "cuda") == ""


def test_routing_of_deepseek_r1():
    case = Routed("deepseek_v3", 256, 8, 8, 4, 2.5, biased=True, tokens=64)
    assert faults(case, "cuda") == ""
