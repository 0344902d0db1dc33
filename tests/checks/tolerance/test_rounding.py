from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.tolerance.rounding import RMS_ROUNDING, SAFETY, SMALLEST, UNIT_ROUNDOFF, for_rounding
from flashinfer_perf.core.dtypes import DType
from tests.checks.tolerance.judged import SIXTEEN_BITS, normal, passes

FORMATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FP8_E4M3, DType.FP8_E5M2]


@pytest.mark.parametrize("dtype", [*FORMATS, DType.FLOAT64])
def test_the_unit_roundoff_and_the_smallest_number_are_torchs(dtype: DType):
    limits = torch.finfo(dtype.torch)
    assert UNIT_ROUNDOFF[dtype] == limits.eps / 2
    assert SMALLEST[dtype] == limits.smallest_normal * limits.eps
    half = torch.tensor([SMALLEST[dtype]], dtype=torch.float64).to(dtype.torch)
    assert half.double().item() == SMALLEST[dtype]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("exponent", [-30, -6, 0, 6])
def test_exact_mathematics_rounded_once_passes(dtype: DType, exponent: int):
    """Over many tensors, also where numbers are subnormal."""
    for seed in range(50):
        truth = normal(seed) * 2.0**exponent
        assert passes(for_rounding(dtype), truth.float().to(dtype.torch), truth)


@given(
    numbers=st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=50),
    dtype=st.sampled_from(FORMATS),
)
def test_any_numbers_rounded_once_pass(numbers: list[float], dtype: DType):
    truth = torch.tensor(numbers, dtype=torch.float64)
    assert passes(for_rounding(dtype), truth.to(dtype.torch), truth)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("reduction", [64, 4096, 16384])
def test_fp32_sums_rounded_once_pass(dtype: DType, reduction: int):
    """The arithmetic's own error stays within four standard deviations of a random walk."""
    for seed in range(5):
        terms = normal(seed, 16, reduction, dtype=torch.float32)
        mean_square = terms.double().square().mean(dim=-1, keepdim=True)
        truth = terms.double() * mean_square.rsqrt()
        summed = terms.square().cumsum(dim=-1)[:, -1:] / reduction  # one after the other: the worst order
        assert passes(for_rounding(dtype, reduction), (terms * summed.rsqrt()).to(dtype.torch), truth)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_what_is_rounded_twice_needs_two_roundings(dtype: DType):
    weight = normal(1)
    truth = normal(0) * weight
    twice = (normal(0).to(dtype.torch).double() * weight).to(dtype.torch)
    assert not passes(for_rounding(dtype), twice, truth)
    assert passes(for_rounding(dtype, roundings=2), twice, truth)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_factor_of_four_units_fails(dtype: DType, sign: int):
    """Of eight for fp32, which is the format of the arithmetic, too, and may err by four units more."""
    truth = normal(0) * 8
    units = 8 if dtype is DType.FLOAT32 else 4
    wrong = (truth * (1 + sign * units * UNIT_ROUNDOFF[dtype])).to(dtype.torch)
    assert not passes(for_rounding(dtype), wrong, truth)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_truncation_in_place_of_rounding_fails(dtype: DType):
    truth = normal(0).float()
    cut = 13 if dtype is DType.FLOAT16 else 16
    truncated = (truth.view(torch.int32) >> cut << cut).view(torch.float32)
    assert passes(for_rounding(dtype), truth.to(dtype.torch), truth)
    assert not passes(for_rounding(dtype), truncated, truth)


def test_small_tensors_are_judged_by_their_elements():
    """Where all elements vanish in the format, the norm of the error is that of the tensor."""
    truth = normal(0) * 2.0**-30
    check = for_rounding(DType.FLOAT16)
    assert passes(check, torch.zeros_like(truth).half(), truth)
    assert not passes(check, torch.full_like(truth, 2.0**-23).half(), truth)


def test_the_tolerance_says_where_it_comes_from():
    assert for_rounding(DType.BFLOAT16, reduction=64).why == "1 rounding(s) to bfloat16 of a sum of 64 fp32 terms"


def test_longer_sums_and_more_roundings_are_allowed_more():
    assert for_rounding(DType.FLOAT32, 1).rtol < for_rounding(DType.FLOAT32, 100).rtol
    assert for_rounding(DType.BFLOAT16).rtol < for_rounding(DType.BFLOAT16, roundings=2).rtol
    assert for_rounding(DType.BFLOAT16).rtol == pytest.approx(2**-8 + SAFETY * 2**-24)


def test_a_rounding_typically_errs_by_what_is_said():
    """Of numbers whose logarithms are spread evenly."""
    numbers = torch.logspace(-3, 3, 100_001, base=2, dtype=torch.float64)
    for dtype in SIXTEEN_BITS:
        error = (numbers.to(dtype.torch).double() - numbers) / numbers
        assert float(error.square().mean().sqrt()) == pytest.approx(RMS_ROUNDING * UNIT_ROUNDOFF[dtype], rel=0.01)
