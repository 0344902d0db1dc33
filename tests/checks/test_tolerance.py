from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.tolerance import (
    RMS_ROUNDING,
    SAFETY,
    SMALLEST,
    UNIT_ROUNDOFF,
    for_attention,
    for_mixture,
    for_rounding,
)
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

FP8 = [DType.FP8_E4M3, DType.FP8_E5M2]
LARGEST = {"q": 12.0, "k": 8.0, "v": 10.0}
"""Of FP8 operands, standing for the format's 448, as the routines have them."""
MIXED = [(wide, fp8) for wide in SIXTEEN_BITS for fp8 in FP8]


def operand(name: str, values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """What the elements of an operand stand for; FP8 is scaled per tensor."""
    if dtype.bytes > 1:
        return values.to(dtype.torch).double()
    scale = LARGEST[name] / 448
    return (values / scale).clamp(-448, 448).to(dtype.torch).double() * scale


def operands(
    formats: tuple[DType, DType], rows: int, keys: int, seed: int = 0, sharpness: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, standard normal before they are rounded to the formats of query and cache."""
    q_format, kv_format = formats
    return (
        operand("q", sharpness * normal(seed, rows, 64), q_format),
        operand("k", normal(seed + 100, keys, 64), kv_format),
        operand("v", normal(seed + 200, keys, 64), kv_format),
    )


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    probabilities: DType | None = None,
    output: DType | None = None,
    largest: float = 1.0,
) -> torch.Tensor:
    """Exact, or as kernels do it: probabilities are rounded before the second product, where the largest of a row
    stands at this number, and normalised after it.
    """
    scores = q.double() @ k.double().T / math.sqrt(q.shape[-1])
    if probabilities is None or output is None:
        return torch.softmax(scores, dim=-1) @ v.double()
    weights = largest * (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = weights.sum(dim=-1, keepdim=True)
    rounded = weights.float().to(probabilities.torch)
    return ((rounded.double() @ v.double()) / total).to(output.torch)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("keys", [1, 7, 64, 2048])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0])
def test_attention_with_rounded_probabilities_passes(dtype: DType, keys: int, sharpness: float):
    for seed in range(4):
        q, k, v = operands((dtype, dtype), 64, keys, seed, sharpness)
        check = for_attention((dtype, dtype), dtype)
        assert passes(check, attention(q, k, v, dtype, dtype), attention(q, k, v))


@pytest.mark.parametrize("formats", [*MIXED, *[(q, kv) for q in FP8 for kv in FP8]])
@pytest.mark.parametrize("keys", [1, 7, 64, 4096])
@pytest.mark.parametrize("largest", [1.0, 256.0])
def test_attention_with_probabilities_in_fp8_passes(formats: tuple[DType, DType], keys: int, largest: float):
    """In that of the cache. Where probabilities are not scaled up most of 4096 are subnormal."""
    q, k, v = operands(formats, 256 if keys < 4096 else 64, keys)
    output = formats[0] if formats[0] in SIXTEEN_BITS else DType.BFLOAT16
    right = attention(q, k, v, formats[1], output, largest)
    assert passes(for_attention(formats, output), right, attention(q, k, v))


@pytest.mark.parametrize("sharpness", [0.1, 3.0])
@pytest.mark.parametrize("dtype", FP8)
def test_flat_and_sharp_attention_with_probabilities_in_fp8_passes(dtype: DType, sharpness: float):
    for keys in (7, 512):
        q, k, v = operands((dtype, dtype), 256, keys, sharpness=sharpness)
        check = for_attention((dtype, dtype), DType.BFLOAT16)
        assert passes(check, attention(q, k, v, dtype, DType.BFLOAT16), attention(q, k, v))


@pytest.mark.parametrize("formats", MIXED)
@pytest.mark.parametrize("keys", [1, 7, 64, 512, 4096])
def test_attention_with_queries_and_probabilities_in_fp8_passes(formats: tuple[DType, DType], keys: int):
    """As XQA on Hopper has it where the cache is FP8 and the query is not. A small case of 16 sequences and 64 heads
    has 1024 rows, and every one must pass.
    """
    wide, fp8 = formats
    q, k, v = operands(formats, 1024 if keys < 4096 else 128, keys)
    right = attention(operand("q", q, fp8), k, v, fp8, wide)
    assert passes(for_attention(formats, wide), right, attention(q, k, v))


def test_a_rounding_typically_errs_by_what_is_said():
    """Of numbers whose logarithms are spread evenly."""
    numbers = torch.logspace(-3, 3, 100_001, base=2, dtype=torch.float64)
    for dtype in SIXTEEN_BITS:
        error = (numbers.to(dtype.torch).double() - numbers) / numbers
        assert float(error.square().mean().sqrt()) == pytest.approx(RMS_ROUNDING * UNIT_ROUNDOFF[dtype], rel=0.01)


@pytest.mark.parametrize(
    ("formats", "unit"),
    [
        ((DType.BFLOAT16, DType.FP8_E4M3), 2**-4),
        ((DType.FP8_E4M3, DType.BFLOAT16), 2**-4),
        ((DType.FP8_E4M3, DType.FP8_E4M3, DType.FP8_E5M2), 2**-3),
        ((DType.BFLOAT16,) * 2, 2**-8),
        ((DType.FLOAT16,) * 3, 2**-11),
    ],
)
def test_the_coarsest_operand_counts(formats: tuple[DType, ...], unit: float):
    for output, last in ((DType.BFLOAT16, 2**-8), (DType.FLOAT16, 2**-11)):
        check = for_attention(formats, output)
        typical = 0.4247 * math.sqrt(8) * unit
        assert (check.rtol, check.by_row) == (last, True)
        assert check.of_row == pytest.approx(6 * typical, rel=1e-3)
        assert check.max_relative_l2 == pytest.approx(1.7 * typical + last, rel=1e-3)


@pytest.mark.parametrize(
    ("between", "unit", "cores"),
    [
        (DType.BFLOAT16, 2**-8, 2**-22),
        (DType.FP8_E4M3, 2**-4, 2**-13),
        (DType.NVFP4, 2**-2, 2**-13),
    ],
)
def test_a_mixture_errs_by_what_goes_into_the_second_product(between: DType, unit: float, cores: float):
    check = for_mixture(between, (256, 1024), DType.BFLOAT16)
    typical = 0.4247 * math.hypot(unit, math.sqrt(5) * 2**-8) + cores * (16 + 32)
    assert (check.rtol, check.by_row) == (2**-8, True)
    assert check.of_row == pytest.approx(6 * typical, rel=1e-3)
    assert check.max_relative_l2 == pytest.approx((1.5 + 6 / 32) * typical + 2**-8, rel=1e-3)
    assert check.why == f"experts of sizes 256 and 1024 with {between} between the products"


def test_attention_says_which_formats_it_was_given():
    why = for_attention((DType.BFLOAT16, DType.FP8_E4M3), DType.BFLOAT16).why
    assert why.endswith("in bfloat16 and fp8_e4m3, output in bfloat16")
    why = for_attention((DType.FLOAT16,) * 3, DType.FLOAT16).why
    assert why.endswith("in float16, output in float16")


BROKEN = [
    "zeros", "nan", "shifted", "rows swapped", "one row wrong", "a page too few", "a page too many", "scale", "larger",
    "smaller", "values swapped", "scale of another operand", "scale forgotten",
]  # fmt: skip


def broken(how: str, formats: tuple[DType, DType], output: DType, keys: int, page: int, off: float) -> torch.Tensor:
    """A kernel's output over these keys with one error; factors are off by this much."""
    q, k, v = operands(formats, 16, keys + page)

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, max(formats, key=UNIT_ROUNDOFF.__getitem__), output)

    right = kernel(q, k[:keys], v[:keys])
    one_row = right.clone()
    one_row[5] = right[6]
    return {
        "right": right,
        "zeros": torch.zeros_like(right),
        "nan": torch.where(torch.arange(64) == 3, math.nan, right),
        "shifted": right.roll(1, -1),
        "rows swapped": right.roll(1, 0),
        "one row wrong": one_row,
        "a page too few": kernel(q, k[: keys - page], v[: keys - page]),
        "a page too many": kernel(q, k, v),
        "scale": kernel((1 + 2 * off) * q, k[:keys], v[:keys]),
        "larger": (right.double() * (1 + off)).to(output.torch),
        "values swapped": kernel(q, k[:keys], v[:keys].flip(0)),
        "scale of another operand": (right.double() * LARGEST["k"] / LARGEST["v"]).to(output.torch),
        "scale forgotten": (right.double() * 448 / LARGEST["v"]).to(output.torch),
        "smaller": (right.double() * (1 - off)).to(output.torch),
    }[how]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("keys", [48, 4096])
def test_broken_attention_fails(dtype: DType, how: str, keys: int):
    """One key of 48 too few is found, and one page of 16 among 4096."""
    page = 1 if keys == 48 else 16
    q, k, v = operands((dtype, dtype), 16, keys + page)
    truth, check = attention(q, k[:keys], v[:keys]), for_attention((dtype, dtype), dtype)
    assert passes(check, broken("right", (dtype, dtype), dtype, keys, page, off=0.02), truth)
    assert not passes(check, broken(how, (dtype, dtype), dtype, keys, page, off=0.02), truth)


@pytest.mark.parametrize("formats", [(DType.BFLOAT16, DType.FP8_E4M3), (DType.FP8_E4M3, DType.FP8_E4M3)])
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("keys", [48, 4096])
def test_broken_attention_in_fp8_fails(formats: tuple[DType, DType], how: str, keys: int):
    """One key of 48 too few is found, and one page of 128 among 4096."""
    page = 1 if keys == 48 else 128
    q, k, v = operands(formats, 16, keys + page)
    truth, check = attention(q, k[:keys], v[:keys]), for_attention(formats, DType.BFLOAT16)
    assert passes(check, broken("right", formats, DType.BFLOAT16, keys, page, off=0.15), truth)
    assert not passes(check, broken(how, formats, DType.BFLOAT16, keys, page, off=0.15), truth)


@pytest.mark.parametrize(("formats", "off"), [((DType.BFLOAT16,) * 2, 0.2), ((DType.FP8_E4M3,) * 2, 2.0)])
def test_one_wrong_element_among_many_fails(formats: tuple[DType, DType], off: float):
    """Off by this much of its row's size, which the row's norm alone might not show."""
    q, k, v = operands(formats, 16, 4096)
    truth = attention(q, k, v)
    wrong = attention(q, k, v, formats[1], DType.BFLOAT16)
    wrong[3, 7] += off * truth[3].square().mean().sqrt()
    finding = for_attention(formats, DType.BFLOAT16).judge("out", {"out": wrong}, {"out": truth})
    assert (finding.passed, finding.differing) == (False, 1)


# ---- Products ----


def product_check(k: int, **changes):
    given = {"operand_bits": 8, "rms": 1.0, "outputs": 4096, **changes}
    return tolerance.for_product(k, DType.BFLOAT16, **given)


def judged(check, out: torch.Tensor, truth: torch.Tensor) -> bool:
    return check.judge("out", {"out": out}, {"out": truth}).passed


@pytest.mark.parametrize("k", [16, 128, 1024, 7168, 16384])
@pytest.mark.parametrize(("bits", "promoted"), [(8, 0), (8, 128), (16, 0)])
def test_a_rounded_product_passes_and_one_that_is_three_percent_off_does_not(k, bits, promoted):
    truth = torch.randn(64, 64, generator=torch.Generator().manual_seed(k)) * math.sqrt(k)
    check = product_check(k, operand_bits=bits, promoted_every=promoted)
    assert judged(check, truth.bfloat16(), truth)
    for factor in (0.97, 1.03, 0.5, 2.0, -1.0):
        assert not judged(check, (truth * factor).bfloat16(), truth)


def test_one_element_that_is_not_a_number_fails():
    truth = torch.randn(64, 64)
    out = truth.bfloat16()
    out[3, 5] = float("nan")
    assert not judged(product_check(128), out, truth)


def test_promotion_to_fp32_leaves_less_to_lose():
    plain, promoted = product_check(16384), product_check(16384, promoted_every=128)
    assert promoted.atol < plain.atol / 8
    assert promoted.max_relative_l2 < plain.max_relative_l2
    assert product_check(128).atol == product_check(128, promoted_every=128).atol


def test_operands_of_16_bits_leave_less_to_lose_than_fp8():
    assert product_check(1024, operand_bits=16).atol < product_check(1024).atol / 100


def test_what_a_tensor_core_cuts_off_is_within_the_tolerance():
    """Each addend is cut off at 2^-13 of the sum so far, as Hopper's FP8 units do at worst."""
    k, generator = 4096, torch.Generator().manual_seed(0)
    a, b = torch.randn(16, k, generator=generator), torch.randn(k, 16, generator=generator)
    total = torch.zeros(16, 16, dtype=torch.float64)
    for i in range(0, k, 32):
        added = total + (a[:, i : i + 32].double() @ b[i : i + 32].double())
        unit = torch.exp2(torch.floor(torch.log2(added.abs())) - 13)
        total = torch.trunc(added / unit) * unit
    truth = a @ b
    assert judged(product_check(k, outputs=256), total.bfloat16(), truth)
    assert not torch.equal(total.bfloat16(), truth.bfloat16())


def test_the_norm_of_few_outputs_is_not_judged():
    assert product_check(128, outputs=63).max_relative_l2 == math.inf
    assert product_check(128, outputs=64).max_relative_l2 < 0.01


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_a_sum_of_ranks_allows_roundings_and_no_rank_too_few(ranks: int, dtype: DType):
    inputs = torch.randn(ranks, 16, 512, generator=torch.Generator().manual_seed(ranks)).to(dtype.torch)
    check, truth = tolerance.for_sum_of_ranks(dtype, ranks), {"out": inputs.double().sum(dim=0)}
    total = inputs[0]
    for addend in inputs[1:]:
        total = total + addend
    assert check.judge("out", {"out": total}, truth).passed
    assert not check.judge("out", {"out": (truth["out"] - inputs[0].double()).to(dtype.torch)}, truth).passed


def test_a_mixture_of_more_roundings_is_allowed_more():
    few, more = (tolerance.for_mixture(DType.BFLOAT16, (64, 64), DType.BFLOAT16, extra) for extra in (0, 4))
    assert few.of_row < more.of_row < 2 * few.of_row
