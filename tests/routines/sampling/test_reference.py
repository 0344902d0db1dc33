"""What may be drawn or kept, against the definitions in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.tolerance import slack_of
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.sampling import reference

ROWS = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any)


def normalised(row):
    return torch.tensor([row], dtype=torch.float64) / sum(row)


@given(row=ROWS, data=st.data())
def test_top_k_is_what_has_fewer_than_k_greater_ones(row, data):
    k = data.draw(st.integers(1, len(row)))
    found = reference.top_k(torch.tensor([row], dtype=torch.float32), k)
    for value, certain, possible in zip(row, found.certain[0].tolist(), found.possible[0].tolist(), strict=True):
        assert possible is (sum(other > value for other in row) < k)
        assert certain is (sum(other >= value for other in row) <= k)


def test_of_ties_at_the_threshold_nobody_can_say():
    found = reference.top_k(torch.tensor([[0.4, 0.2, 0.2, 0.2]]), 2)
    assert found.certain.tolist() == [[True, False, False, False]]
    assert found.possible.all()


def test_entries_a_little_below_the_threshold_may_be_in_where_there_is_slack():
    weights = torch.tensor([[1.0, 0.5, 0.4999, 0.4]])
    assert reference.top_k(weights, 2).possible.tolist() == [[True, True, False, False]]
    assert reference.top_k(weights, 2, slack=1e-3).possible.tolist() == [[True, True, True, False]]


def test_slack_is_what_the_format_of_logits_rounds_probabilities_by():
    assert slack_of(DType.FLOAT32, 128256) == 0
    assert slack_of(DType.FLOAT16, 1000) == 3 * 2.0**-11
    assert slack_of(DType.FLOAT16, 128256) == pytest.approx(3 * 0.0153, rel=0.01)
    assert slack_of(DType.BFLOAT16, 128256) == 3 * 2.0**-8


@given(row=ROWS)
def test_the_mass_of_greater_ones(row):
    found = reference.greater_mass(torch.tensor([row, row], dtype=torch.float64))
    expected = [sum(other for other in row if other > value) for value in row]
    assert found.tolist() == [expected, expected]


@given(row=ROWS, p=st.floats(0.001, 1))
def test_top_p_is_what_has_less_than_p_in_greater_ones(row, p):
    probs = normalised(row)
    found = reference.top_p(probs, p)
    for i, value in enumerate(row):
        mass = sum(other for other in row if other > value) / sum(row)
        if abs(mass - p) > 2e-5:
            assert found.certain[0, i] == found.possible[0, i] == (mass < p and value > 0)


def test_masses_near_to_the_threshold_are_in_neither_set():
    probs = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64)
    for p, unsure in ((0.9 + 5e-6, True), (0.9 - 5e-6, True), (0.9 + 2e-5, False), (0.9 - 2e-5, False)):
        found = reference.top_p(probs, p)
        assert bool(found.possible[0, 2] & ~found.certain[0, 2]) is unsure
    assert reference.top_p(probs, 1e-9).certain.tolist() == [[True, False, False]]


@given(row=ROWS, data=st.data())
def test_both_filters_of_the_same_probabilities(row, data):
    k, p = data.draw(st.integers(1, len(row))), data.draw(st.floats(0.01, 1))
    probs = normalised(row)
    found = reference.top_k_top_p(probs, k, p, first=False)
    of_k, of_p = reference.top_k(probs, k), reference.top_p(probs, p)
    assert torch.equal(found.certain, of_k.certain & of_p.certain)
    assert torch.equal(found.possible, of_k.possible & of_p.possible)


@given(row=ROWS, data=st.data())
def test_top_p_after_top_k_counts_the_mass_of_what_is_left(row, data):
    """Of all ways to choose among equal ones: what is certain is in all of them, what is possible in one at least."""
    k, p = data.draw(st.integers(1, len(row))), data.draw(st.floats(0.01, 1))
    found = reference.top_k_top_p(normalised(row), k, p, first=True)
    kth = sorted(row, reverse=True)[k - 1]
    exactly = sum(sorted(row, reverse=True)[:k])
    whole = sum(value for value in row if value >= kth)
    for i, value in enumerate(row):
        mass = sum(other for other in row if other > value)
        if any(abs(mass / total - p) < 2e-5 for total in (exactly, whole)) or value == 0:
            continue
        kept = [mass / total < p and value >= kth for total in (exactly, whole)]
        fits = value > kth or row.count(kth) == 1 or sum(other >= kth for other in row) == k
        assert bool(found.certain[0, i]) is (all(kept) and fits)
        assert bool(found.possible[0, i]) is any(kept)


@given(row=ROWS, share=st.floats(0, 1))
def test_min_p_is_what_has_a_share_of_the_largest(row, share):
    found = reference.min_p(normalised(row), share)
    for i, value in enumerate(row):
        if abs(value - share * max(row)) > 1e-3:
            assert found.certain[0, i] == found.possible[0, i] == (value >= share * max(row) and value > 0)
        if value == max(row):
            assert found.certain[0, i]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_softmax(temperature):
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    weights = [2.718281828459045 ** (x / temperature) for x in (1, 2, 3)]
    (row,) = reference.softmax(logits, temperature=temperature)["probs"].tolist()
    assert row == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)
