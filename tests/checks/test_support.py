from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.support import Support, everything

WEIGHTS = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
SOME = Support(WEIGHTS, WEIGHTS > 2.5, WEIGHTS > 1.5)


def test_laws_are_those_of_certain_entries():
    expected = torch.tensor([[4 / 7, 3 / 7, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(SOME.laws(), expected)


def test_the_share_of_uncertain_entries_is_the_largest_that_they_can_have():
    assert SOME.unsure_share().tolist() == pytest.approx([2 / 9, 1.0])
    assert everything(WEIGHTS).unsure_share().tolist() == pytest.approx([0.0, 0.0])


def test_entries_in_range_that_are_not_out_are_allowed():
    assert [SOME.allows(torch.tensor([token, 3])).tolist() for token in range(-1, 5)] == [
        [False, True],
        *[[True, True]] * 3,
        *[[False, True]] * 2,
    ]


def test_everything_is_what_has_a_weight():
    support = everything(WEIGHTS.float())
    assert support.weights.dtype is torch.float64
    assert torch.equal(support.certain, WEIGHTS > 0)
    assert torch.equal(support.possible, WEIGHTS > 0)
    assert len(support) == 2


def test_a_row_is_a_support_of_one_row():
    row = SOME.row(1)
    assert (len(row), row.possible.tolist()) == (1, [[False, False, False, True]])
