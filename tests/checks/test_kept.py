from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.kept import Kept
from flashinfer_perf.checks.support import Support
from flashinfer_perf.core.dtypes import DType

WEIGHTS = torch.tensor([[4.0, 3.0, 2.0, 2.0, 1.0]], dtype=torch.float64)
TRUTH = Support(WEIGHTS, WEIGHTS > 2, WEIGHTS >= 2)
NORMALISED = Kept(tolerance.for_rounding(DType.FLOAT32), dropped=0.0, normalised=True, at_least=3)
MASKED = Kept(tolerance.EXACT, dropped=-math.inf, normalised=False, at_least=3)


def normalised(*values: float) -> torch.Tensor:
    row = torch.tensor([values])
    return row / row.sum()


def judge(check: Kept, output: torch.Tensor, truth: Support = TRUTH):
    return check.judge("x", {"x": output}, {"x": truth})


@pytest.mark.parametrize("row", [(4, 3, 2, 2, 0), (4, 3, 2, 0, 0), (4, 3, 0, 2, 0)])
def test_any_choice_among_uncertain_entries_passes_with_its_own_sum(row: tuple[float, ...]):
    assert judge(NORMALISED, normalised(*row)).passed
    masked = torch.tensor([[value or -math.inf for value in map(float, row)]])
    assert judge(MASKED, masked).passed


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((4, 3, 0, 0, 0), "1 rows with too few"),
        ((4, 0, 2, 2, 0), "1 missing"),
        ((4, 3, 2, 2, 1), "1 superfluous"),
        ((0, 0, 0, 0, 0), "2 missing"),
    ],
)
def test_another_choice_fails_and_says_why(row: tuple[float, ...], why: str):
    finding = judge(NORMALISED, torch.tensor([row]) / 11)
    assert not finding.passed
    assert why in finding.detail


def test_the_sum_is_that_of_what_is_kept():
    assert not judge(NORMALISED, torch.tensor([[4.0, 3, 2, 0, 0]]) / 11).passed


def test_not_a_number_fails():
    output = normalised(4, 3, 2, 2, 0)
    output[0, 0] = math.nan
    assert not judge(NORMALISED, output).passed
    output[0, 0], output[0, 4] = 4 / 11, math.nan
    assert not judge(NORMALISED, output).passed


def test_values_that_are_copied_are_exact():
    masked = torch.tensor([[4, 3, 2, 2, -math.inf]], dtype=torch.float64)
    assert judge(MASKED, masked).passed
    assert not judge(MASKED, masked.nextafter(torch.tensor(9.0, dtype=torch.float64))).passed


def test_what_the_format_cannot_hold_may_be_zero():
    weights = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    truth = Support(weights, weights > 0, weights > 0)
    half = Kept(tolerance.for_rounding(DType.FLOAT16), dropped=0.0, normalised=True, at_least=2)
    assert judge(half, torch.tensor([[1.0, 0.0]], dtype=torch.float16), truth).passed
    assert not judge(NORMALISED, torch.tensor([[1.0, 0.0]]), truth).passed


def test_another_shape_fails():
    assert not judge(NORMALISED, torch.zeros(2, 5)).passed
