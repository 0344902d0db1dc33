"""MXFP4 blocks, against the rules and the vectors that were measured on hardware."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import e2m1, mxfp4
from tests.formats.brute_force import all_16_bit

DTYPES = [torch.bfloat16, torch.float16]
VECTOR = "80 90 91 a2 a2 b2 b3 c4 c4 c4 d4 d5 d5 d5 e6 e6"


def scale_by_rule(amax: float) -> int:
    """The smallest e with 2^e >= amax / 6, plus 127; 0 when amax / 6 is subnormal in fp32. Exact: no division."""
    if amax < 6 * 2.0**-126:
        return 0
    fraction, exponent = math.frexp(amax)
    return exponent - (3 if fraction <= 0.75 else 2) + 127


def block(*values: float, dtype=torch.bfloat16) -> torch.Tensor:
    """One block that begins with these values and goes on with zeros."""
    return torch.tensor([[*values, *[0.0] * (32 - len(values))]], dtype=dtype)


def codes_of(quantised: mxfp4.Mxfp4) -> list[int]:
    return e2m1.unpack(quantised.packed)[0].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_vector(dtype):
    """x_i = i for even i, -i for odd i; computed with numpy and with CUDA's own host conversions."""
    index = torch.arange(32)
    quantised = mxfp4.encode(torch.where(index % 2 == 0, index, -index).to(dtype)[None])
    assert quantised.scales.tolist() == [[0x82]]
    assert bytes(quantised.packed[0].tolist()).hex(" ") == VECTOR


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_amax_has_the_scale_of_the_rule(dtype, sign):
    amax = all_16_bit(dtype)
    amax = amax[(amax > 0) & amax.isfinite()]
    x = torch.zeros(len(amax), 32, dtype=dtype)
    x[torch.arange(len(amax)), torch.arange(len(amax)) % 32] = sign * amax
    expected = [scale_by_rule(value) for value in amax.double().tolist()]
    assert mxfp4.encode(x).scales[:, 0].tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_element_uses_the_range(dtype):
    """Scaled, it lies in (3, 6]: a larger scale would waste a bit, a smaller one saturate."""
    amax = all_16_bit(dtype)
    amax = amax[(amax.double() >= 6 * 2.0**-126) & amax.isfinite()]
    x = torch.zeros(len(amax), 32, dtype=dtype)
    x[:, 5] = amax
    scaled = amax.double() / 2.0 ** (mxfp4.encode(x).scales[:, 0].double() - 127)
    assert bool(((scaled > 3) & (scaled <= 6)).all())


def test_zero_blocks():
    quantised = mxfp4.encode(block(0.0, -0.0))
    assert quantised.scales.tolist() == [[0]]
    assert codes_of(quantised) == [0, 8] + [0] * 30


def test_blocks_too_small_for_a_scale_become_zeros_with_signs():
    largest_flushed = float(torch.tensor(6 * 2.0**-126, dtype=torch.bfloat16).nextafter(torch.tensor(0.0).bfloat16()))
    quantised = mxfp4.encode(block(largest_flushed, -largest_flushed))
    assert quantised.scales.tolist() == [[0]]
    assert codes_of(quantised)[:3] == [0, 8, 0]
    assert mxfp4.encode(block(6 * 2.0**-126)).scales.tolist() == [[1]]


def test_nan_is_not_seen_by_the_maximum():
    quantised = mxfp4.encode(block(math.nan, 6.0, -3.0))
    assert quantised.scales.tolist() == [[127]]
    assert codes_of(quantised)[:4] == [7, 7, 13, 0]


def test_infinity_takes_the_largest_scale_and_the_block_with_it():
    """Its output scale is flushed to zero, and inf * 0 is NaN, which becomes code 7."""
    quantised = mxfp4.encode(block(math.inf, -math.inf, 1.0, -1.0))
    assert quantised.scales.tolist() == [[0xFE]]
    assert codes_of(quantised)[:5] == [7, 7, 0, 8, 0]


def test_blocks_are_independent_and_lie_in_order():
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = mxfp4.encode(x)
    assert (whole.packed.shape, whole.scales.shape) == ((5, 48), (5, 3))
    for row in range(5):
        for column in range(3):
            alone = mxfp4.encode(x[row : row + 1, 32 * column : 32 * (column + 1)])
            assert torch.equal(whole.packed[row, 16 * column : 16 * (column + 1)], alone.packed[0])
            assert whole.scales[row, column] == alone.scales[0, 0]


def test_decode():
    quantised = mxfp4.Mxfp4(torch.tensor([[0x72, 0xF9] + [0] * 14], dtype=torch.uint8), torch.tensor([[128]]))
    assert mxfp4.decode(quantised)[0, :5].tolist() == [2.0, 12.0, -1.0, -12.0, 0.0]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-448, 448, width=16), min_size=32, max_size=32), st.sampled_from(DTYPES))
def test_decoding_errs_by_half_a_step_at_most(numbers, dtype):
    x = torch.tensor([numbers]).to(dtype)
    quantised = mxfp4.encode(x)
    scale = 2.0 ** (int(quantised.scales) - 127)
    scaled = x.double() / scale
    half_step = torch.where(scaled.abs() < 2, 0.25, torch.where(scaled.abs() < 4, 0.5, 1.0))
    error = (mxfp4.decode(quantised).double() - x.double()).abs()
    assert bool((error <= half_step * scale).all()) or not int(quantised.scales)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=32, max_size=32), st.integers(1, 252))
def test_encoding_undoes_decoding(codes, byte):
    """Given an element of 6, which fixes the scale. bf16 holds every product, subnormal ones included."""
    packed = e2m1.pack(torch.tensor([[7, *codes[1:]]], dtype=torch.uint8))
    quantised = mxfp4.Mxfp4(packed, torch.tensor([[byte]], dtype=torch.uint8))
    again = mxfp4.encode(mxfp4.decode(quantised).to(torch.bfloat16))
    assert torch.equal(again.packed, packed)
    assert torch.equal(again.scales, quantised.scales)
