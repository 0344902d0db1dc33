"""NVFP4 blocks, against the rules and the vector that was measured on hardware."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import e2m1, nvfp4
from tests.formats.brute_force import all_16_bit, nearest_even

DTYPES = [torch.bfloat16, torch.float16]
VECTOR = "90 a2 c3 d4 e5 e6 f6 f7"
E4M3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()


def block(*values: float, dtype=torch.bfloat16) -> torch.Tensor:
    """One block that begins with these values and goes on with zeros."""
    return torch.tensor([[*values, *[0.0] * (16 - len(values))]], dtype=dtype)


def codes_of(quantised: nvfp4.Nvfp4) -> list[int]:
    return e2m1.unpack(quantised.packed)[0].tolist()


def blocks_with(amax: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """A block for each largest magnitude, which stands at another place in each."""
    x = torch.zeros(len(amax), 16, dtype=amax.dtype)
    x[torch.arange(len(amax)), torch.arange(len(amax)) % 16] = sign * amax
    return x


@pytest.mark.parametrize("dtype", DTYPES)
def test_vector(dtype):
    """x_i = i for even i, -i for odd i; computed with numpy and with CUDA's own host conversions."""
    index = torch.arange(16)
    quantised = nvfp4.encode(torch.where(index % 2 == 0, index, -index).to(dtype)[None])
    assert quantised.scales.tolist() == [[0x42]]
    assert bytes(quantised.packed[0].tolist()).hex(" ") == VECTOR


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-7, 0, 1, 8])
def test_every_amax_has_the_scale_of_the_rule(dtype, sign, power):
    """The e4m3 number nearest to g * amax / 6, saturating; exact for every 16-bit amax and a g that is a power of 2."""
    amax = all_16_bit(dtype)
    amax = amax[(amax > 0) & amax.isfinite()]
    wanted = amax.double() * 2.0**power / 6
    expected = nearest_even(wanted, E4M3)
    assert torch.equal(nvfp4.encode(blocks_with(amax, sign), 2.0**power).scales[:, 0].long(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_amax_is_the_largest_element(dtype):
    """A scale that is neither subnormal nor saturated errs by 1/16 at most, and between 5 and 7 everything is 6."""
    amax = all_16_bit(dtype)
    amax = amax[(amax >= 6 * 2.0**-6) & (amax <= 6 * 448)]
    quantised = nvfp4.encode(blocks_with(amax))
    codes = e2m1.unpack(quantised.packed)
    assert set(codes.amax(dim=1).tolist()) == {7}
    assert bool((codes.sum(dim=1) == 7).all())


@pytest.mark.parametrize("global_scale", [3.0, 0.37, 0.05, 2688 / 4.1])
def test_a_global_scale_multiplies(global_scale):
    """Within a code of the exact rule: the reciprocals are rounded."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    quantised = nvfp4.encode(x, global_scale)
    wanted = global_scale * x.double().unflatten(-1, (-1, 16)).abs().amax(dim=-1) / 6
    expected = nearest_even(wanted.flatten(), E4M3)
    assert int((quantised.scales.flatten().long() - expected).abs().max()) <= 1
    assert nvfp4.decode(quantised, global_scale).sub(x).norm() < 0.11 * x.float().norm()


def test_a_tensor_as_global_scale():
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    by_tensor, by_number = nvfp4.encode(x, torch.tensor([2.7])), nvfp4.encode(x, 2.7)
    assert torch.equal(by_tensor.packed, by_number.packed)
    assert torch.equal(by_tensor.scales, by_number.scales)


def test_zero_blocks():
    quantised = nvfp4.encode(block(0.0, -0.0))
    assert quantised.scales.tolist() == [[0]]
    assert codes_of(quantised) == [0, 8] + [0] * 14


def test_the_smallest_scale():
    """g * amax / 6 must be above 2^-10, the tie between 0 and e4m3's smallest number, 2^-9."""
    assert nvfp4.encode(block(6 * 2.0**-10)).scales.tolist() == [[0]]
    assert nvfp4.encode(block(6 * 1.0078125 * 2.0**-10)).scales.tolist() == [[1]]
    assert nvfp4.encode(block(6 * 2.0**-10), 2.0).scales.tolist() == [[1]]


def test_a_block_whose_scale_is_lost():
    """The quantisers divide by zero: ±6, and +6 for 0 / 0. The norm kernels write zeros, with signs."""
    lost = block(2.0**-9, -(2.0**-9), 0.0)
    assert nvfp4.encode(lost).scales.tolist() == [[0]]
    assert codes_of(nvfp4.encode(lost))[:4] == [7, 15, 7, 7]
    assert nvfp4.encode(lost, zero_lost=True).scales.tolist() == [[0]]
    assert codes_of(nvfp4.encode(lost, zero_lost=True))[:4] == [0, 8, 0, 0]


def test_saturation():
    """Scale and elements stop at their largest numbers."""
    quantised = nvfp4.encode(block(6 * 448 * 4.0, -6 * 448.0, 448.0))
    assert quantised.scales.tolist() == [[0x7E]]
    assert codes_of(quantised)[:3] == [7, 15, 2]


def test_nan_is_not_seen_by_the_maximum():
    quantised = nvfp4.encode(block(math.nan, 6.0, -3.0))
    assert quantised.scales.tolist() == [[0x38]]
    assert codes_of(quantised)[:4] == [7, 7, 13, 0]


def test_infinity_takes_the_largest_scale():
    quantised = nvfp4.encode(block(math.inf, -math.inf, 448.0, -1.0))
    assert quantised.scales.tolist() == [[0x7E]]
    assert codes_of(quantised)[:4] == [7, 15, 2, 8]


def test_blocks_are_independent_and_lie_in_order():
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = nvfp4.encode(x)
    assert (whole.packed.shape, whole.scales.shape) == ((2, 3, 24), (2, 3, 3))
    for row in range(3):
        for column in range(3):
            alone = nvfp4.encode(x[1, row, None, 16 * column : 16 * (column + 1)])
            assert torch.equal(whole.packed[1, row, 8 * column : 8 * (column + 1)], alone.packed[0])
            assert whole.scales[1, row, column] == alone.scales[0, 0]


def test_decode():
    packed = torch.tensor([[0x72, 0xF9] + [0] * 6], dtype=torch.uint8)
    quantised = nvfp4.Nvfp4(packed, torch.tensor([[0x42]], dtype=torch.uint8))
    assert nvfp4.decode(quantised)[0, :5].tolist() == [2.5, 15.0, -1.25, -15.0, 0.0]
    assert nvfp4.decode(quantised, 5.0)[0, :2].tolist() == [0.5, 3.0]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-448, 448, width=16), min_size=16, max_size=16), st.sampled_from(DTYPES))
def test_decoding_errs_by_half_a_step_at_most(numbers, dtype):
    x = torch.tensor([numbers]).to(dtype)
    quantised = nvfp4.encode(x)
    scale = float(quantised.scales.view(torch.float8_e4m3fn).float())
    if not scale:
        return
    scaled = x.double().abs() / scale
    half_step = torch.where(scaled < 2, 0.25, torch.where(scaled < 4, 0.5, 1.0))
    half_step = torch.where(scaled > 6, scaled - 6, half_step)  # the scale may have been rounded down
    error = (nvfp4.decode(quantised).double() - x.double()).abs()
    assert bool((error <= half_step * scale * (1 + 1e-6)).all())


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=16, max_size=16), st.integers(8, 126), st.integers(-8, 8))
def test_encoding_undoes_decoding(codes, byte, power):
    """Given an element of 6, which fixes the scale; fp32 holds every product."""
    packed = e2m1.pack(torch.tensor([[7, *codes[1:]]], dtype=torch.uint8))
    quantised = nvfp4.Nvfp4(packed, torch.tensor([[byte]], dtype=torch.uint8))
    again = nvfp4.encode(nvfp4.decode(quantised, 2.0**power), 2.0**power)
    assert torch.equal(again.packed, packed)
    assert torch.equal(again.scales, quantised.scales)
