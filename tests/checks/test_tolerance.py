from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.tolerance import SAFETY, SMALLEST, UNIT_ROUNDOFF, for_attention, for_rounding
from flashinfer_perf.core.dtypes import DType

FORMATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FP8_E4M3, DType.FP8_E5M2]
SIXTEEN_BITS = [DType.FLOAT16, DType.BFLOAT16]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape or (64, 96), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def passes(check, actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return check.judge("out", {"out": actual}, {"out": expected}).passed


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


# ---- attention ----


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rounded: torch.dtype | None = None) -> torch.Tensor:
    """Exact, or with probabilities rounded before the second product and normalised after it."""
    scores = q.double() @ k.double().T / math.sqrt(q.shape[-1])
    if rounded is None:
        return torch.softmax(scores, dim=-1) @ v.double()
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = weights.sum(dim=-1, keepdim=True)
    return ((weights.to(rounded).double() @ v.double()) / total).to(rounded)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("keys", [1, 7, 64, 2048])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0])
def test_attention_with_rounded_probabilities_passes(dtype: DType, keys: int, sharpness: float):
    for seed in range(4):
        q = (sharpness * normal(seed, 16, 64)).to(dtype.torch)
        k, v = (normal(seed + offset, keys, 64).to(dtype.torch) for offset in (100, 200))
        assert passes(for_attention(dtype, dtype), attention(q, k, v, dtype.torch), attention(q, k, v))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize(
    "how", ["zeros", "nan", "shifted", "a key too few", "a key too many", "scale", "scaled by 1.02", "values swapped"]
)
def test_broken_attention_fails(dtype: DType, how: str):
    q, k, v = (normal(seed, rows, 64).to(dtype.torch) for seed, rows in ((0, 16), (1, 49), (2, 49)))
    truth = attention(q, k[:48], v[:48])
    right = attention(q, k[:48], v[:48], dtype.torch)
    wrong = {
        "zeros": torch.zeros_like(right),
        "nan": torch.where(torch.arange(64) == 3, math.nan, right),
        "shifted": right.roll(1, -1),
        "a key too few": attention(q, k[:47], v[:47], dtype.torch),
        "a key too many": attention(q, k, v, dtype.torch),
        "scale": attention(1.1 * q.float(), k[:48], v[:48], dtype.torch),
        "scaled by 1.02": (right.double() * 1.02).to(dtype.torch),
        "values swapped": attention(q, k[:48], v[:48].flip(0), dtype.torch),
    }[how]
    check = for_attention(dtype, dtype)
    assert passes(check, right, truth)
    assert not passes(check, wrong, truth)
