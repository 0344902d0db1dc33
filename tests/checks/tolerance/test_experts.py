"""Experts as kernels compute them: activations rounded before one product or both, and what is kept in 16 bits."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks.tolerance.experts import FIRST_GAIN, NVFP4_NOISE, for_mixture
from flashinfer_perf.checks.tolerance.rounding import RMS_ROUNDING, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, nvfp4
from tests.checks.tolerance.judged import SIXTEEN_BITS, normal, passes

SIZES = (256, 128)
TOKENS = 256
ROUND = {
    DType.BFLOAT16: lambda values: values.bfloat16().float(),
    DType.FLOAT16: lambda values: values.half().float(),
    DType.FP8_E4M3: lambda values: fp8.decode_tensor(fp8.encode_tensor(values, DType.FP8_E4M3)),
    DType.NVFP4: lambda values: nvfp4.decode(nvfp4.encode(values)),
}
FORMATS = [*ROUND]


def as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values


def expert(before=as_it_is, between=as_it_is, kept=as_it_is, sizes=SIZES, w1_factor=1.0) -> torch.Tensor:
    """(tokens, hidden): one expert's answer; what goes into either product and what is kept on the way is rounded."""
    hidden, inside = sizes
    x, w1, w2 = normal(5, TOKENS, hidden).float(), normal(6, 2 * inside, hidden).float(), normal(7, hidden, inside)
    up, gate = kept(w1_factor * (before(x) @ w1.T) / math.sqrt(hidden)).chunk(2, dim=-1)
    activated = between(torch.nn.functional.silu(gate) * up)
    return kept(kept(activated @ w2.float().T / math.sqrt(inside)))


def kernel(format: DType, before_both: bool, output: DType = DType.BFLOAT16, **how) -> torch.Tensor:
    """An honest one, in the output's format."""
    rounded = ROUND[format]
    answer = expert(rounded if before_both else as_it_is, rounded, ROUND[output], **how)
    return answer.to(output.torch)


def error(answer: torch.Tensor) -> float:
    return float((answer - expert()).norm() / expert().norm())


NOISE = {format: RMS_ROUNDING * UNIT_ROUNDOFF[format] for format in FORMATS} | {DType.NVFP4: NVFP4_NOISE}


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_errs_by_what_is_said(format: DType):
    values = normal(1, 256, 1024).float()
    assert float((ROUND[format](values) - values).norm() / values.norm()) == pytest.approx(NOISE[format], rel=0.03)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("before_both", [False, True])
def test_an_expert_errs_by_what_is_said(format: DType, before_both: bool):
    rounded = ROUND[format]
    found = error(expert(rounded if before_both else as_it_is, rounded))
    assert found == pytest.approx(NOISE[format] * (math.hypot(1, FIRST_GAIN) if before_both else 1), rel=0.07)


@pytest.mark.parametrize("sizes", [(128, 64), SIZES, (256, 512)])
@pytest.mark.parametrize("before_both", [False, True])
@pytest.mark.parametrize("output", SIXTEEN_BITS)
@pytest.mark.parametrize("format", [None, DType.FP8_E4M3, DType.NVFP4])
def test_an_honest_expert_passes(format: DType | None, output: DType, before_both: bool, sizes: tuple[int, int]):
    """With activations in the output's format or quantised."""
    format = format or output
    check = for_mixture(format, sizes, output, before_both=before_both)
    assert passes(check, kernel(format, before_both, output, sizes=sizes), expert(sizes=sizes))


OFF = {DType.BFLOAT16: 0.03, DType.FLOAT16: 0.004, DType.FP8_E4M3: 0.2, DType.NVFP4: 0.7}
"""A wrong factor, by format, that is found on top of the format's own error."""


@pytest.mark.parametrize("before_both", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_broken_expert_does_not(format: DType, before_both: bool):
    output = format if format.bytes == 2 else DType.BFLOAT16
    check, right = for_mixture(format, SIZES, output, before_both=before_both), kernel(format, before_both, output)
    one_token = right.clone()
    one_token[5] = right[6]
    one_element = right.clone()
    one_element[3, 7] += 16 * OFF[format]
    broken = {
        "zeros": torch.zeros_like(right),
        "nan": torch.where(torch.arange(SIZES[0]) == 3, math.nan, right),
        "another token": right.roll(1, 0),
        "shifted": right.roll(1, -1),
        "one token wrong": one_token,
        "one element wrong": one_element,
        "larger": right * (1 + OFF[format]),
        "smaller": right * (1 - OFF[format]),
        "the gate's scale": kernel(format, before_both, output, w1_factor=1 + OFF[format]),
    }
    assert passes(check, right, expert())
    assert [how for how, answer in broken.items() if passes(check, answer, expert())] == []


@pytest.mark.parametrize("format", [DType.FP8_E4M3, DType.NVFP4])
def test_activations_in_16_bits_may_not_err_like_quantised_ones(format: DType):
    check = for_mixture(DType.FLOAT16, SIZES, DType.FLOAT16, before_both=True)
    assert not passes(check, kernel(format, False, DType.FLOAT16), expert())


def test_one_rounding_is_allowed_less_than_two():
    once, twice = (for_mixture(DType.NVFP4, SIZES, DType.BFLOAT16, before_both=both) for both in (False, True))
    assert once.max_relative_l2 < 0.7 * twice.max_relative_l2
    assert once.why == "experts of sizes 256 and 128 with nvfp4 between the products"
    assert twice.why == "experts of sizes 256 and 128 with nvfp4 before both products"


@pytest.mark.parametrize(
    ("format", "noise", "cores"),
    [(DType.BFLOAT16, 0.42466 / 256, 2**-22), (DType.FP8_E4M3, 0.42466 / 16, 2**-13), (DType.NVFP4, 0.0954, 2**-13)],
)
def test_the_bounds(format: DType, noise: float, cores: float):
    check = for_mixture(format, (256, 1024), DType.BFLOAT16)
    typical = math.hypot(noise, math.sqrt(5) * 0.42466 / 256) + cores * (16 + 32)
    assert (check.rtol, check.by_row) == (2**-8, True)
    assert check.of_row == pytest.approx(8 * typical, rel=1e-3)
    assert check.max_relative_l2 == pytest.approx((1.5 + 8 / 32) * typical + 2**-8, rel=1e-3)


def test_a_mixture_of_more_roundings_is_allowed_more():
    few, more = (for_mixture(DType.BFLOAT16, (64, 64), DType.BFLOAT16, more_roundings=extra) for extra in (0, 4))
    assert few.of_row < more.of_row < 2 * few.of_row


def test_sums_that_are_kept_in_the_outputs_format_may_err_at_each_addend():
    """Eight experts' results added in bfloat16: an element of 0.536, in a row of 0.144, came back as 0.527."""
    truth = 0.144 * torch.randn(1, 7168, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth[0, 5] = 0.536
    found = truth.bfloat16()
    found[0, 5] = 0.52734375
    once, often = (for_mixture(DType.BFLOAT16, (7168, 2048), DType.BFLOAT16, more_roundings=n) for n in (0, 7))
    assert not passes(once, found, truth)
    assert passes(often, found, truth)
    found[0, 5] = 0.48
    assert not passes(often, found, truth)
