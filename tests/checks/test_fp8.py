from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.fp8 import Fp8Codes, ordinal
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.record import Finding
from flashinfer_perf.formats.fp8 import LARGEST, encode
from flashinfer_perf.run.launch import Launch

FORMATS = [DType.FP8_E4M3, DType.FP8_E5M2]


def judge(actual: torch.Tensor, expected: torch.Tensor, check: Fp8Codes | None = None) -> Finding:
    return (check or Fp8Codes()).judge("out", {"out": actual}, {"out": expected})


def values(scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(32, 64, generator=torch.Generator().manual_seed(2))


def moved(codes: torch.Tensor, count: int, steps: int = 1) -> torch.Tensor:
    """So many codes that many steps further from zero."""
    bits = codes.clone().view(torch.uint8).flatten()
    inner = ((bits & 0x7F) < 0x70).nonzero()[:count, 0]
    bits[inner] += steps
    return bits.view(codes.shape).view(codes.dtype)


BROKEN = {
    "zeros": torch.zeros_like,
    "one nan": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) == 9, math.nan, x),
    "all nan": lambda x: torch.full_like(x, math.nan),
    "scaled": lambda x: x * 1.02,
    "shifted": lambda x: x.roll(1, -1),
    "off by one row": lambda x: x.roll(1, 0),
    "one row forgotten": lambda x: torch.where(torch.arange(len(x))[:, None] == 3, 0.0, x),
    "truncated": lambda x: x * (1 - 2**-5),
    "negated": lambda x: -x,
}


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_truth_passes(dtype: DType):
    finding = judge(encode(values(), dtype), encode(values(), dtype))
    assert (finding.passed, finding.differing, finding.max_abs) == (True, 0, 0.0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_fp32_noise_before_the_rounding_passes(dtype: DType):
    """What an honest kernel differs by: another order of summation, a fused multiplication."""
    noise = 1 + 3e-7 * torch.randn(values().shape, generator=torch.Generator().manual_seed(3))
    finding = judge(encode(values() * noise, dtype), encode(values(), dtype))
    assert finding.passed
    assert finding.fraction < 0.001


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_output_fails(how: str, dtype: DType):
    assert not judge(encode(BROKEN[how](values()), dtype), encode(values(), dtype)).passed


@pytest.mark.parametrize("dtype", FORMATS)
def test_few_codes_may_be_one_step_off_and_none_two(dtype: DType):
    codes = encode(values(), dtype)
    allowed = int(0.01 * codes.numel())
    finding = judge(moved(codes, allowed), codes)
    assert (finding.passed, finding.differing) == (True, allowed)
    assert not judge(moved(codes, allowed + 1), codes).passed
    assert not judge(moved(codes, 1, steps=2), codes).passed
    assert judge(moved(codes, 1, steps=2), codes, Fp8Codes(max_steps=2)).passed


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_overflow_is_no_neighbour_of_the_largest_number(dtype: DType):
    """The code after the largest number is infinity or NaN: a kernel that does not saturate makes those."""
    codes = encode(torch.full((1000,), 2 * LARGEST[dtype]), dtype)
    assert judge(codes, codes).passed
    wrong = codes.clone().view(torch.uint8)
    wrong[5] += 1
    finding = judge(wrong.view(dtype.torch), codes)
    assert not finding.passed
    assert finding.differing == 1


@pytest.mark.parametrize("dtype", FORMATS)
def test_nan_never_passes_not_even_where_the_truth_is_nan(dtype: DType):
    nan = torch.full((4,), math.nan).to(dtype.torch)
    assert not judge(nan, nan).passed


@pytest.mark.parametrize("dtype", FORMATS)
def test_ordinals_count_the_numbers_from_zero(dtype: DType):
    """Over all 256 codes: larger numbers have larger ordinals, and neighbours differ by one."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype.torch)
    numbers, places = codes.float(), ordinal(codes).int()
    finite = numbers.isfinite()
    order = numbers[finite].argsort(stable=True)
    steps = places[finite][order].diff()
    assert set(steps.tolist()) == {0, 1}
    assert int((steps == 0).sum()) == 1  # the two zeros
    assert ordinal(torch.zeros(1).to(dtype.torch)).item() == ordinal((-torch.zeros(1)).to(dtype.torch)).item() == 0
    assert torch.equal(places[:128], torch.arange(128, dtype=torch.int32))
    assert torch.equal(places[128:], -torch.arange(128, dtype=torch.int32))


@given(
    a=st.integers(0, 255),
    b=st.integers(0, 255),
    dtype=st.sampled_from(FORMATS),
)
def test_the_order_of_ordinals_is_the_order_of_numbers(a: int, b: int, dtype: DType):
    first, second = (torch.tensor([code], dtype=torch.uint8).view(dtype.torch) for code in (a, b))
    x, y = float(first.float()), float(second.float())
    if not (math.isnan(x) or math.isnan(y)):
        places = int(ordinal(first)), int(ordinal(second))
        assert (x < y, x == y) == (places[0] < places[1], places[0] == places[1])


def test_the_numbers_of_a_mismatch():
    codes = encode(values(), DType.FP8_E4M3)
    wrong = codes.clone()
    wrong[4, 7] = -448
    finding = judge(wrong, codes)
    assert finding.worst_index == (4, 7)
    assert finding.actual is not None
    assert finding.actual.worst == -448
    assert finding.detail == "codes at most 1 apart, at most 1.00% of them"


def test_another_shape_fails_and_nothing_is_equal_to_nothing():
    codes = encode(values(), DType.FP8_E4M3)
    assert not judge(codes.T, codes).passed
    assert judge(codes[:0], codes[:0]).passed


def test_backends_are_compared_like_with_the_truth():
    codes, check = encode(values(), DType.FP8_E4M3), Fp8Codes()
    for actual, agreed in ((moved(codes, 1), True), (moved(codes, 1, steps=3), False)):
        finding = check.agree("out", {"out": actual}, {"out": codes})
        assert finding is not None
        assert finding.passed is agreed
    assert check.probe("out", Launch(lambda: None), {}) is None
