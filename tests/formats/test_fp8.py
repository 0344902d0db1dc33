"""FP8 with the conversion of kernels: to nearest even, saturating."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from tests.formats.brute_force import all_16_bit, nearest_even

FORMATS = [DType.FP8_E4M3, DType.FP8_E5M2]
FINITE = {DType.FP8_E4M3: 0x7F, DType.FP8_E5M2: 0x7C}
"""How many codes with a positive sign are finite numbers."""


def magnitudes_of(dtype: DType) -> torch.Tensor:
    """Positive finite values by code, from the definition of the format."""
    bits, bias = {DType.FP8_E4M3: (3, 7), DType.FP8_E5M2: (2, 15)}[dtype]
    values = []
    for code in range(FINITE[dtype]):
        exponent, mantissa = code >> bits, (code & ((1 << bits) - 1)) / (1 << bits)
        values.append(mantissa * 2.0 ** (1 - bias) if exponent == 0 else (1 + mantissa) * 2.0 ** (exponent - bias))
    return torch.tensor(values, dtype=torch.float64)


def codes(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    return fp8.encode(values, dtype).view(torch.uint8)


def code_of(value: float, dtype: DType) -> int:
    return int(codes(torch.tensor([value], dtype=torch.float32), dtype)[0])


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_largest_number_is_that_of_the_format(dtype):
    assert fp8.LARGEST[dtype] == float(magnitudes_of(dtype)[-1]) == torch.finfo(dtype.torch).max


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_codes_go_back_to_themselves(dtype):
    every = torch.arange(256).to(torch.uint8)
    finite = (every & 0x7F) < FINITE[dtype]
    values = every.view(dtype.torch).float()
    assert torch.equal(codes(values[finite], dtype), every[finite])
    size = magnitudes_of(dtype).float()
    assert torch.equal(values[finite], torch.cat((size, -size)))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_all_16_bit_values_go_to_the_nearest(dtype, source):
    values = all_16_bit(source).float()
    values = values[~values.isnan()]
    expected = nearest_even(values, magnitudes_of(dtype)) + 0x80 * torch.signbit(values)
    assert torch.equal(codes(values, dtype), expected.to(torch.uint8))


@pytest.mark.parametrize("dtype", FORMATS)
@settings(derandomize=True, deadline=None)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_all_fp32_values_go_to_the_nearest(dtype, numbers):
    values = torch.tensor(numbers, dtype=torch.float32)
    expected = nearest_even(values, magnitudes_of(dtype)) + 0x80 * torch.signbit(values)
    assert torch.equal(codes(values, dtype), expected.to(torch.uint8))


@pytest.mark.parametrize("dtype", FORMATS)
def test_ties_and_their_neighbours(dtype):
    """Halfway between two codes, and one fp32 number to either side."""
    size = magnitudes_of(dtype)
    ties = ((size[:-1] + size[1:]) / 2).float()
    infinity = torch.tensor(math.inf)
    values = torch.cat((ties.nextafter(-infinity), ties, ties.nextafter(infinity)))
    below = torch.arange(len(ties))
    expected = torch.cat((below, below + below % 2, below + 1)).to(torch.uint8)
    assert torch.equal(codes(values, dtype), expected)
    assert torch.equal(codes(-values, dtype), expected + 0x80)


@pytest.mark.parametrize("value", [464.0, 480.0, 1e6, 3e38, math.inf])
def test_e4m3_saturates(value):
    assert code_of(value, DType.FP8_E4M3) == 0x7E
    assert code_of(-value, DType.FP8_E4M3) == 0xFE


@pytest.mark.parametrize("value", [61440.0, 65536.0, 1e6, 3e38, math.inf])
def test_e5m2_saturates(value):
    assert code_of(value, DType.FP8_E5M2) == 0x7B
    assert code_of(-value, DType.FP8_E5M2) == 0xFB


@pytest.mark.parametrize(
    ("value", "code"), [(2.0**-10, 0), (1.5 * 2.0**-9, 2), (0.0, 0), (-0.0, 0x80), (-(2.0**-11), 0x80)]
)
def test_measured_small_values_of_e4m3(value, code):
    assert code_of(value, DType.FP8_E4M3) == code


@pytest.mark.parametrize("dtype", FORMATS)
def test_nan_stays(dtype):
    assert bool(fp8.encode(torch.tensor([math.nan, 1.0]), dtype).float().isnan()[0])
