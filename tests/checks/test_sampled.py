"""Outputs of which the truth is known in some rows only."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.sampled import SampledRows, in_rows
from flashinfer_perf.core.record import Finding
from flashinfer_perf.run.launch import Launch

WITHIN = Close(rtol=1e-3, atol=1e-6, max_relative_l2=1e-3, why="a test", by_row=True)
ROWS = torch.tensor([0, 3, 7])
SAMPLED = SampledRows(WITHIN, ROWS, of=8)


def whole() -> torch.Tensor:
    """What a right kernel gives."""
    return torch.randn(8, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def judge(output: torch.Tensor) -> Finding:
    return SAMPLED.judge("out", {"out": output}, {"out": whole()[ROWS]})


def test_a_right_output_passes_and_it_is_said_what_was_judged():
    finding = judge(whole())
    assert finding.passed
    assert finding.coverage == "in 3 of 8 rows, drawn with the seed"
    assert (finding.output, finding.elements, finding.differing) == ("out", 3 * 2 * 16, 0)
    assert finding.detail == WITHIN.text


BROKEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zeros": torch.zeros_like,
    "nan": lambda x: torch.full_like(x, math.nan),
    "scaled": lambda x: x * 1.02,
    "rows shifted": lambda x: x.roll(1, 0),
    "heads swapped": lambda x: x.flip(1),
    "columns shifted": lambda x: x.roll(1, -1),
    "first rows in place of the sampled": lambda x: x[[0, 0, 0, 1, 0, 0, 0, 2]],
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_output_fails(how: str):
    assert not judge(BROKEN[how](whole())).passed


@pytest.mark.parametrize("row", range(8))
def test_the_truth_of_each_row_is_compared_with_that_row(row: int):
    wrong = whole()
    wrong[row, 1, 5] += 0.5
    finding = judge(wrong)
    assert finding.passed is (row not in ROWS)
    assert finding.differing == (1 if row in ROWS else 0)
    assert finding.coverage == "in 3 of 8 rows, drawn with the seed"


@pytest.mark.parametrize("row", [3, 7])
def test_the_worst_element_is_told_by_its_place_in_the_output(row: int):
    wrong = whole()
    wrong[row, 1, 5] += 0.5
    assert judge(wrong).worst_index == (row, 1, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", range(8))
def test_in_every_row_there_must_be_numbers(row: int, value: float):
    wrong = whole()
    wrong[row, 0, 1:3] = value
    finding = judge(wrong)
    assert (finding.passed, finding.differing, finding.elements) == (False, 2, 8 * 2 * 16)
    assert finding.detail == "NaN or infinite elements"


@pytest.mark.parametrize("rows", [0, 3, 7, 9])
def test_the_output_has_all_rows(rows: int):
    """Also where it has as many as the sample, or at least the last one of it."""
    finding = judge(torch.ones(rows, 2, 16))
    assert not finding.passed
    assert finding.detail == f"{rows} rows instead of 8"
    assert (finding.elements, finding.differing) == (8, 8)


def test_rows_of_another_shape_fail():
    assert judge(torch.ones(8, 16, 2)).detail == "shape (3, 16, 2) instead of (3, 2, 16)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_of_any_format_are_judged(dtype: torch.dtype):
    check = SampledRows(Close(2**-8, 1e-3, 2**-8, "a rounding"), ROWS, of=8)
    assert check.judge("out", {"out": whole().to(dtype)}, {"out": whole()[ROWS]}).passed


@pytest.mark.parametrize("row", range(8))
def test_two_backends_must_agree_in_all_rows(row: int):
    other = whole()
    agreement = SAMPLED.agree("out", {"out": whole() * 1.0015}, {"out": other})
    assert agreement is not None
    assert agreement.passed  # within twice the tolerance
    assert agreement.coverage == ""
    other[row, 0, 0] += 0.5
    disagreement = SAMPLED.agree("out", {"out": whole()}, {"out": other})
    assert disagreement is not None
    assert (disagreement.passed, disagreement.differing) == (False, 1)


def test_there_is_nothing_to_probe():
    assert SAMPLED.probe("out", Launch(lambda: None), {}) is None


def test_without_a_sample_it_is_the_check_itself():
    assert in_rows(WITHIN, None, 8) is WITHIN
    check = in_rows(WITHIN, ROWS, 8)
    assert isinstance(check, SampledRows)
    assert (check.within, check.of) == (WITHIN, 8)
    assert check.rows is ROWS
