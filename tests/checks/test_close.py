from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.record import Finding
from flashinfer_perf.run.launch import Launch

WITHIN = Close(rtol=1e-3, atol=1e-6, max_relative_l2=1e-3, why="a test")
INF = math.inf


def judge(actual: torch.Tensor, expected: torch.Tensor, within: Close = WITHIN) -> Finding:
    return within.judge("out", {"out": actual}, {"out": expected})


def truth(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (8, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def off_by_one_element(expected: torch.Tensor) -> torch.Tensor:
    wrong = expected.clone()
    wrong[3, 5] += 0.1
    return wrong


BROKEN = {
    "zeros": torch.zeros_like,
    "nan": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) == 7, math.nan, x),
    "all nan": lambda x: torch.full_like(x, math.nan),
    "infinity": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) == 7, INF, x),
    "one element": off_by_one_element,
    "scaled": lambda x: x * 1.02,
    "shifted": lambda x: x.roll(1, -1),
    "rows swapped": lambda x: x[[1, 0, *range(2, len(x))]],
    "negated": lambda x: -x,
    "first row everywhere": lambda x: x[:1].expand_as(x),
}


def test_the_truth_passes():
    finding = judge(truth(), truth())
    assert finding.passed
    assert (finding.elements, finding.differing, finding.max_abs) == (128, 0, 0.0)
    assert finding.cosine == pytest.approx(1)


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_broken_output_fails(how: str, dtype: torch.dtype):
    within = Close(rtol=2**-8, atol=1e-6, max_relative_l2=2**-8, why="bf16")
    assert judge(truth().to(dtype), truth(), within).passed
    assert not judge(BROKEN[how](truth()).to(dtype), truth(), within).passed


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    factors=st.lists(st.floats(-0.999, 0.999), min_size=20, max_size=20),
)
def test_errors_within_the_tolerance_pass_and_one_beyond_fails(values: list[float], factors: list[float]):
    expected = torch.tensor(values, dtype=torch.float64)
    bound = WITHIN.atol + WITHIN.rtol * expected.abs()
    elementwise = Close(WITHIN.rtol, WITHIN.atol, INF, "elements only")
    actual = expected + bound * torch.tensor(factors[: len(values)], dtype=torch.float64)
    assert judge(actual, expected, elementwise).passed
    actual[0] = expected[0] + 1.01 * bound[0]
    finding = judge(actual, expected, elementwise)
    assert (finding.passed, finding.differing) == (False, 1)


@given(position=st.integers(0, 127), value=st.sampled_from([math.nan, INF, -INF]))
def test_one_nan_or_infinity_anywhere_fails(position: int, value: float):
    actual = truth()
    actual.view(-1)[position] = value
    finding = judge(actual, truth(), Close(1e9, 1e9, 1e9, "anything goes"))
    assert (finding.passed, finding.differing) == (False, 1)


def test_nan_never_passes_not_even_where_the_truth_is_nan():
    nan = torch.tensor([1.0, math.nan])
    assert not judge(nan, nan, Close(INF, INF, INF, "anything goes")).passed


def test_an_infinity_is_matched_by_the_same_infinity_only():
    """A masked logit is minus infinity, and right to be."""
    masked = torch.tensor([1.0, -INF, 2.0])
    finding = judge(masked, masked)
    assert (finding.passed, finding.max_abs, finding.relative_l2) == (True, 0.0, 0.0)
    for value in (INF, -1e30, 0.0, math.nan):
        wrong = masked.clone()
        wrong[1] = value
        assert judge(wrong, masked).differing == 1
        assert not judge(wrong, masked, Close(1e9, 1e9, INF, "anything goes")).passed
    shifted = torch.tensor([-INF, 1.0, 2.0])
    assert judge(shifted, masked).differing == 2


def test_all_elements_together_have_a_bound_of_their_own():
    """Each element within its tolerance, and all of them to the same side: a bias that averages must not hide."""
    within = Close(rtol=1e-2, atol=0, max_relative_l2=1e-3, why="a bias")
    one = truth()
    one[0, 0] *= 1.009
    assert judge(one, truth(), within).passed
    finding = judge(truth() * 1.009, truth(), within)
    assert (finding.passed, finding.differing) == (False, 0)
    assert finding.relative_l2 == pytest.approx(0.009)


def test_numbers_of_a_mismatch_are_the_tensors_own():
    expected = truth()
    finding = judge(off_by_one_element(expected), expected)
    assert finding.worst_index == (3, 5)
    assert finding.actual is not None
    assert finding.expected is not None
    assert finding.actual.worst - finding.expected.worst == pytest.approx(0.1)
    assert finding.expected.minimum == expected.min()
    assert finding.max_abs == pytest.approx(0.1)
    assert finding.fraction == 1 / 128


def test_nan_is_the_worst_element():
    actual = truth()
    actual[0, 1] += 100
    actual[2, 3] = math.nan
    assert judge(actual, truth()).worst_index == (2, 3)


def test_the_detail_says_what_was_demanded_and_why():
    assert judge(truth(), truth()).detail == "rtol 0.001, atol 1e-06, relative L2 0.001: a test"


def test_another_shape_fails():
    assert judge(truth(16, 8), truth()).detail == "shape (16, 8) instead of (8, 16)"


def test_nothing_is_equal_to_nothing():
    assert judge(torch.empty(0, 4), torch.empty(0, 4)).passed


def test_backends_may_lie_on_opposite_sides_of_the_truth():
    low, high = truth() * (1 - 0.9e-3), truth() * (1 + 0.9e-3)
    assert judge(low, truth()).passed
    assert judge(high, truth()).passed
    assert not judge(low, high).passed
    agreement = WITHIN.agree("out", {"out": low}, {"out": high})
    assert agreement is not None
    assert agreement.passed
    disagreement = WITHIN.agree("out", {"out": truth() * 1.02}, {"out": high})
    assert disagreement is not None
    assert not disagreement.passed


# ---- rows ----


def by_row(bound: float) -> Close:
    return Close(rtol=1, atol=1, max_relative_l2=bound, why="a row", by_row=True)


def test_one_wrong_row_cannot_hide_behind_many_right_ones():
    """It lies along the last dimension: a head of a token, not a token."""
    expected = truth(50, 8, 16)
    actual = expected.clone()
    actual[7, 3] *= 1.1
    assert judge(actual, expected, Close(1, 1, 0.05, "all together")).passed
    assert judge(actual, expected, by_row(0.101)).passed
    finding = judge(actual, expected, by_row(0.099))
    assert (finding.passed, finding.differing) == (False, 0)
    assert finding.relative_l2 == pytest.approx(0.1)
    assert finding.worst_index[:2] == (7, 3)


def test_a_row_of_a_vector_is_all_of_it():
    assert judge(truth(16) * 1.1, truth(16), by_row(0.101)).passed
    assert not judge(truth(16) * 1.1, truth(16), by_row(0.099)).passed


def test_elements_may_err_by_a_share_of_their_own_rows_size():
    """Its root mean square, added to the other bounds."""
    expected = torch.tensor([[[3.0, -4.0, 0.0, 0.0], [30.0, 40.0, 0.0, 0.0]]])  # rms 2.5 and 25
    within = Close(rtol=0.01, atol=0.001, max_relative_l2=INF, why="a row", of_row=0.1)
    bounds = torch.tensor([[[0.281, 0.291, 0.251, 0.251], [2.801, 2.901, 2.501, 2.501]]])
    torch.testing.assert_close(within.allowed(expected), bounds)
    for sign in (-1, 1):
        assert judge(expected + sign * 0.999 * bounds, expected, within).differing == 0
        assert judge(expected + sign * 1.001 * bounds, expected, within).differing == 8


def test_without_a_share_of_the_row_rows_do_not_matter():
    expected = torch.tensor([[100.0, 0.0]])
    torch.testing.assert_close(WITHIN.allowed(expected), torch.tensor([[0.100001, 1e-6]]))


def test_the_share_of_the_row_is_said():
    within = Close(rtol=0.5, atol=0.25, max_relative_l2=0.125, why="a test", by_row=True, of_row=0.0625)
    assert within.text == "rtol 0.5, atol 0.25 + 0.0625 of the row's rms, relative L2 of a row 0.125: a test"
    assert judge(truth(), truth(), within).detail == within.text
    assert (
        Close(0.5, 0.25, INF, "a test", of_row=0.0625).text == "rtol 0.5, atol 0.25 + 0.0625 of the row's rms: a test"
    )


@pytest.mark.parametrize("rows", [True, False])
def test_twice_doubles_every_number_and_nothing_else(rows: bool):
    assert Close(1, 2, 3, "a test", rows, 4).twice() == Close(2, 4, 6, "a test", rows, 8)
    assert Close(1, 2, INF, "a test").twice() == Close(2, 4, INF, "a test")


def test_agreement_is_twice_of_rows_too():
    within = Close(rtol=0, atol=0, max_relative_l2=0.1, why="a row", by_row=True, of_row=0.5)
    high, low = truth() * 1.09, truth() * 0.91
    for one, other, agree in ((high, low, True), (high, truth() * 0.8, False)):
        finding = within.agree("out", {"out": one}, {"out": other})
        assert finding is not None
        assert finding.passed is agree


def test_there_is_nothing_to_probe():
    assert WITHIN.probe("out", Launch(lambda: None), {}) is None
