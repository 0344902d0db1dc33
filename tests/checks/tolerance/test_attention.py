from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks.tolerance.attention import for_attention
from flashinfer_perf.checks.tolerance.rounding import UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType
from tests.checks.tolerance.judged import SIXTEEN_BITS, normal, passes

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
