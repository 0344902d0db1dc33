"""MXFP8 blocks, against the rules, a model in exact arithmetic, and the vectors that were measured on hardware."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import mxfp8
from tests.formats.brute_force import all_16_bit, e4m3_magnitudes, mx_block, nearest_even, smallest_power_byte

DTYPES = [torch.bfloat16, torch.float16]
VECTOR = "00 d0 58 dc 60 e2 64 e6 68 e9 6a eb 6c ed 6e ef 70 f0 71 f2 72 f2 73 f4 74 f4 75 f6 76 f6 77 f8"  # x_i = ±i
INFINITY, NAN = math.inf, math.nan

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def block(*values: float, dtype=torch.bfloat16) -> torch.Tensor:
    """One block that begins with these values and goes on with zeros."""
    return torch.tensor([[*values, *[0.0] * (32 - len(values))]], dtype=dtype)


def codes_of(quantised: mxfp8.Mxfp8) -> list[int]:
    return quantised.elements.view(torch.uint8)[0].tolist()


def positive(dtype: torch.dtype) -> torch.Tensor:
    """Every positive finite value."""
    values = all_16_bit(dtype)
    return values[(values > 0) & values.isfinite()]


@each_dtype
def test_vector(dtype):
    """x_i = i for even i, -i for odd i; computed with numpy and with CUDA's own host conversions."""
    index = torch.arange(32)
    quantised = mxfp8.encode(torch.where(index % 2 == 0, index, -index).to(dtype)[None])
    assert quantised.scales.tolist() == [[0x7C]]
    assert bytes(codes_of(quantised)).hex(" ") == VECTOR


@pytest.mark.parametrize("sign", [1, -1])
@each_dtype
def test_every_amax_has_the_scale_of_the_rule(dtype, sign):
    """At every place in a block: the smallest power of two not below amax / 448, in exact arithmetic."""
    amax = positive(dtype)
    x = torch.zeros(len(amax), 32, dtype=dtype)
    x[torch.arange(len(amax)), torch.arange(len(amax)) % 32] = sign * amax
    assert torch.equal(mxfp8.encode(x).scales[:, 0].long(), smallest_power_byte(amax, 448))


@each_dtype
def test_the_largest_element_uses_the_range(dtype):
    """Scaled, it lies in (224, 448]: a larger scale would waste a power of two, a smaller one saturate."""
    amax = positive(dtype)
    amax = amax[amax.double() >= 448 * 2.0**-126]
    x = torch.zeros(len(amax), 32, dtype=dtype)
    x[:, 5] = amax
    quantised = mxfp8.encode(x)
    scaled = amax.double() / 2.0 ** (quantised.scales[:, 0].double() - 127)
    assert bool(((scaled > 224) & (scaled <= 448)).all())
    assert bool((quantised.elements[:, 5].double() >= 224).all())


@each_dtype
@pytest.mark.parametrize("amax", [448.0, 1.0, 1.75 * 2.0**-8, 57344.0])
def test_every_value_below_an_amax_goes_to_the_nearest(dtype, amax):
    """Every tie and every subnormal element among them, with both signs."""
    values = all_16_bit(dtype)
    values = values[values.isfinite() & (values.abs() <= amax)]
    x = torch.cat((torch.full((len(values), 1), amax, dtype=dtype), values[:, None]), dim=1)
    quantised = mxfp8.encode(torch.nn.functional.pad(x, (0, 30)))
    scale = 2.0 ** float(smallest_power_byte(torch.tensor(amax), 448) - 127)
    expected = nearest_even(values.double() / scale, e4m3_magnitudes()) + 0x80 * torch.signbit(values)
    assert torch.equal(quantised.elements.view(torch.uint8)[:, 1].long(), expected)


@each_dtype
def test_every_code_of_an_element_goes_back_to_itself(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 0x7F != 0x7F].reshape(-1, 2)
    elements = torch.full((len(codes), 32), 0x7E, dtype=torch.uint8)
    elements[:, 1:3] = codes
    quantised = mxfp8.Mxfp8(elements.view(torch.float8_e4m3fn), torch.full((len(codes), 1), 127, dtype=torch.uint8))
    again = mxfp8.encode(mxfp8.decode(quantised).to(dtype))
    assert torch.equal(again.elements.view(torch.uint8), elements)
    assert torch.equal(again.scales, quantised.scales)


def test_zero_blocks():
    quantised = mxfp8.encode(block(0.0, -0.0))
    assert quantised.scales.tolist() == [[0]]
    assert codes_of(quantised) == [0, 0x80] + [0] * 30


def test_blocks_too_small_for_a_scale_become_zeros_with_signs():
    limit = torch.tensor(448 * 2.0**-126, dtype=torch.bfloat16)
    below = float(limit.nextafter(torch.tensor(0.0).bfloat16()))
    quantised = mxfp8.encode(block(below, -below))
    assert quantised.scales.tolist() == [[0]]
    assert codes_of(quantised)[:3] == [0, 0x80, 0]
    assert mxfp8.encode(block(float(limit))).scales.tolist() == [[1]]


def test_nan_is_not_seen_by_the_maximum_and_becomes_the_largest_number():
    quantised = mxfp8.encode(block(NAN, 448.0, -1.0))
    assert quantised.scales.tolist() == [[127]]
    assert codes_of(quantised)[:4] == [0x7E, 0x7E, 0xB8, 0]
    alone = mxfp8.encode(block(NAN))
    assert alone.scales.tolist() == [[0]]
    assert codes_of(alone)[:2] == [0x7E, 0]


def test_infinity_takes_the_largest_scale_and_the_block_with_it():
    """The reciprocal of that scale is flushed to zero, inf * 0 is NaN, and NaN is clamped to +448."""
    quantised = mxfp8.encode(block(INFINITY, -INFINITY, 1.0, -1.0))
    assert quantised.scales.tolist() == [[0xFE]]
    assert codes_of(quantised)[:5] == [0x7E, 0x7E, 0, 0x80, 0]


def test_no_code_is_ever_nan():
    """0x7F and 0xFF do not come out, whatever goes in."""
    for dtype in DTYPES:
        x = all_16_bit(dtype)
        for blocks in (x.view(-1, 32), x.view(32, -1).T.contiguous()):
            assert not bool(mxfp8.encode(blocks).elements.isnan().any())


def test_blocks_are_independent_and_lie_in_order():
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = mxfp8.encode(x)
    assert (whole.elements.shape, whole.scales.shape) == ((2, 3, 96), (2, 3, 3))
    assert (whole.elements.dtype, whole.scales.dtype) == (torch.float8_e4m3fn, torch.uint8)
    for row in range(3):
        for column in range(3):
            part = slice(32 * column, 32 * (column + 1))
            alone = mxfp8.encode(x[1, row, None, part])
            assert torch.equal(whole.elements[1, row, part].view(torch.uint8), alone.elements[0].view(torch.uint8))
            assert whole.scales[1, row, column] == alone.scales[0, 0]


@pytest.mark.parametrize(("columns", "alignment", "padded"), [(32, 32, 32), (96, 64, 128), (64, 128, 128)])
def test_columns_are_padded_to_the_alignment(columns, alignment, padded):
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    quantised = mxfp8.encode(x, alignment)
    assert quantised.elements.shape == (3, padded)
    assert quantised.scales.shape == (3, padded // 32)
    assert not bool(quantised.elements[:, columns:].view(torch.uint8).any())
    assert not bool(quantised.scales[:, columns // 32 :].any())
    plain = mxfp8.encode(x)
    assert torch.equal(quantised.elements[:, :columns].view(torch.uint8), plain.elements.view(torch.uint8))
    assert torch.equal(quantised.scales[:, : columns // 32], plain.scales)


@pytest.mark.parametrize(("columns", "alignment"), [(33, 32), (16, 32), (64, 48), (64, 16)])
def test_columns_and_alignment_must_be_whole_blocks(columns, alignment):
    with pytest.raises(ValueError, match=rf"columns \({columns}\) and alignment \({alignment}\)"):
        mxfp8.encode(torch.zeros(2, columns), alignment)


def test_decode():
    elements = torch.tensor([[0x38, 0xC0, 0x7E] + [0] * 29], dtype=torch.uint8).view(torch.float8_e4m3fn)
    for byte, scale in ((127, 1.0), (130, 8.0), (120, 2.0**-7), (0, 2.0**-127)):
        quantised = mxfp8.Mxfp8(elements, torch.tensor([[byte]], dtype=torch.uint8))
        assert mxfp8.decode(quantised)[0, :4].tolist() == [scale, -2 * scale, 448 * scale, 0.0]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-6e4, 6e4, width=16), min_size=32, max_size=32), st.sampled_from(DTYPES))
def test_it_is_the_model_in_exact_arithmetic(numbers, dtype):
    x = torch.tensor([numbers]).to(dtype)
    quantised = mxfp8.encode(x)
    byte, codes = mx_block(x[0].double().tolist(), 448, e4m3_magnitudes())
    assert quantised.scales.tolist() == [[byte]]
    assert codes_of(quantised) == codes


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-6e4, 6e4, width=16), min_size=32, max_size=32), st.sampled_from(DTYPES))
def test_decoding_errs_by_half_a_step_at_most(numbers, dtype):
    x = torch.tensor([numbers]).to(dtype)
    quantised = mxfp8.encode(x)
    scale = 2.0 ** (int(quantised.scales) - 127)
    scaled = (x.double() / scale).abs()
    half_step = 2.0 ** (torch.frexp(scaled).exponent.clamp(min=-5).double() - 5)
    error = (mxfp8.decode(quantised).double() - x.double()).abs()
    assert bool((error <= half_step * scale).all()) or not int(quantised.scales)
