from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.selected import LargestPositions, LargestValues, Selection, as_they_are

SCORES = torch.tensor([[1.0, 5.0, 5.0, 3.0], [7.0, 0.0, 2.0, 9.0]], dtype=torch.float64)


def truth(k: int, lengths: tuple[int, int] = (4, 4)) -> Selection:
    return Selection(SCORES, torch.tensor(lengths), k, as_they_are)


def judge(positions: list[list[int]], k: int = 1, lengths: tuple[int, int] = (4, 4)):
    return LargestPositions().judge("x", {"x": torch.tensor(positions)}, {"x": truth(k, lengths)})


def test_the_largest_within_the_lengths():
    assert truth(2).best().tolist() == [[5, 5], [9, 7]]
    assert truth(3, (2, 1)).best().tolist() == [[5, 1, -math.inf], [7, -math.inf, -math.inf]]
    assert truth(9).best().shape == (2, 4)


@pytest.mark.parametrize("positions", [[[1], [3]], [[2], [3]]])
def test_either_of_two_equal_ones_is_right(positions: list[list[int]]):
    assert judge(positions).passed


@pytest.mark.parametrize(
    ("positions", "why"),
    [
        ([[3], [3]], "others than the largest"),
        ([[-1], [3]], "not of their row, or too few"),
        ([[4], [3]], "not of their row, or too few"),
        ([[-2], [3]], "not of their row, or too few"),
        ([[1]], "shape"),
    ],
)
def test_others_fail_and_say_why(positions: list[list[int]], why: str):
    finding = judge(positions)
    assert not finding.passed
    assert why in finding.detail


def test_one_twice_fails():
    assert judge([[1, 2], [3, 0]], 2).passed
    assert "selected twice" in judge([[1, 1], [3, 0]], 2).detail


def test_short_rows_are_padded_and_with_nothing_else():
    assert judge([[1, 0, -1], [0, -1, -1]], 3, (2, 1)).passed
    assert judge([[-1, 0, 1], [-1, -1, 0]], 3, (2, 1)).passed
    assert not judge([[1, 0, 0], [0, -1, -1]], 3, (2, 1)).passed
    assert not judge([[1, 0, 2], [0, -1, -1]], 3, (2, 1)).passed


def test_values_in_any_order_and_bit_for_bit():
    values = torch.tensor([[5.0, 5.0], [7.0, 9.0]])
    assert LargestValues().judge("x", {"x": values}, {"x": truth(2)}).passed
    for wrong in (values[:, :1], values.roll(1, dims=0), values * (1 + 1e-7), values * math.nan):
        assert not LargestValues().judge("x", {"x": wrong}, {"x": truth(2)}).passed


def test_values_belong_to_positions():
    check = LargestPositions(values="values")
    positions, values = torch.tensor([[1, 2], [0, 3]]), torch.tensor([[5.0, 5.0], [7.0, 9.0]])
    assert check.judge("x", {"x": positions, "values": values}, {"x": truth(2)}).passed
    finding = check.judge("x", {"x": positions, "values": values.flip(-1)}, {"x": truth(2)})
    assert finding.detail == "they do not belong to values"


@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=9), data=st.data())
def test_a_sort_selects_rightly_and_nothing_smaller_does(scores: list[int], data: st.DataObject):
    k = data.draw(st.integers(1, len(scores)))
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    found = Selection(torch.tensor([scores]).double(), torch.tensor([len(scores)]), k, as_they_are)
    chosen = order[:k]
    assert LargestPositions().judge("x", {"x": torch.tensor([chosen])}, {"x": found}).passed
    for other in order[k:]:
        swapped = torch.tensor([[*chosen[:-1], other]])
        right = scores[other] == scores[chosen[-1]]
        assert LargestPositions().judge("x", {"x": swapped}, {"x": found}).passed is right
