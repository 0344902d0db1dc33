"""Expert sets with and without ties, in groups and not, and outputs that are judged by them."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.routed import Choice, ChosenExperts, Mixed, MixtureOutput

WITHIN = Close(rtol=0.01, atol=0.0, max_relative_l2=0.01, why="a test", by_row=True)


def choice(scores, top_k=2, groups=1, topk_group=1, slack=1e-3):
    table = torch.tensor([scores], dtype=torch.float64)
    of_groups = table.unflatten(-1, (groups, -1)).topk(min(2, table.shape[1] // groups), dim=-1).values.sum(-1)
    return Choice(table.topk(top_k, dim=-1).indices, table, of_groups, topk_group, slack)


def passes(truth, experts, dtype=torch.int32):
    finding = ChosenExperts().judge("ids", {"ids": torch.tensor([experts], dtype=dtype)}, {"ids": truth})
    return finding.passed


CLEAR = [0.1, 0.9, 0.5, 0.2]
TIED = [0.9, 0.5, 0.5, 0.1]
ALMOST = [0.9, 0.5, 0.5005, 0.1]


@pytest.mark.parametrize(
    ("scores", "experts", "right"),
    [
        (CLEAR, [1, 2], True),
        (CLEAR, [2, 1], True),
        (CLEAR, [1, 3], False),
        (CLEAR, [1, 1], False),
        (CLEAR, [1, 4], False),
        (CLEAR, [1, -1], False),
        (TIED, [0, 1], True),
        (TIED, [0, 2], True),
        (TIED, [1, 2], False),
        (ALMOST, [0, 1], True),
        (ALMOST, [0, 2], True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_sets(scores, experts, right, dtype):
    assert passes(choice(scores), experts, dtype) is right


def test_what_is_no_tie_by_the_slack():
    assert not passes(choice(ALMOST, slack=1e-6), [0, 1])


GROUPED = [0.9, 0.1, 0.6, 0.5, 0.7, 0.2, 0.0, 0.0]
"""Sums of groups of two: 1.0, 1.1, 0.9, 0."""


@pytest.mark.parametrize(
    ("topk_group", "experts", "right"),
    [
        (1, [2, 3], True),
        (1, [0, 4], False),
        (2, [0, 2], True),
        (2, [0, 4], False),
        (2, [2, 3], False),
        (3, [0, 4], True),
        (4, [0, 4], True),
        (3, [0, 2], False),
    ],
)
def test_groups(topk_group, experts, right):
    """Only experts of the best groups count, and those count even if a token has chosen none of a group's."""
    assert passes(choice(GROUPED, groups=4, topk_group=topk_group), experts) is right


def test_tied_groups():
    """Either of the two, not both."""
    truth = choice([0.9, 0.1, 0.6, 0.4, 0.0, 0.0], groups=3, topk_group=1)
    assert passes(truth, [0, 1])
    assert passes(truth, [2, 3])
    assert not passes(truth, [0, 2])
    assert not passes(truth, [4, 5])


def test_a_wrong_shape():
    finding = ChosenExperts().judge("ids", {"ids": torch.zeros(1, 3)}, {"ids": choice(CLEAR)})
    assert not finding.passed
    assert "shape" in finding.detail


def test_backends_need_not_agree_on_ties():
    assert ChosenExperts().agree("ids", {}, {}) is None
    assert ChosenExperts().probe("ids", None, {}) is None


# ---- Outputs ----


def sums(_, experts):
    """What tokens give in these tests: the sum of their experts' numbers, and twice that."""
    total = experts.sum(dim=-1, keepdim=True).float()
    return torch.cat((total, 2 * total), dim=-1)


def mixed(truth):
    return Mixed(sums(None, truth.experts), truth, sums)


def judged(truth, experts, output):
    actual = {"ids": torch.tensor([experts], dtype=torch.int32), "out": torch.tensor([output])}
    return MixtureOutput(WITHIN, "ids").judge("out", actual, {"out": mixed(truth)})


def test_an_output_is_judged_by_its_own_choice():
    truth = choice(TIED)
    assert judged(truth, [0, 1], [1.0, 2.0]).passed
    assert judged(truth, [0, 2], [2.0, 4.0]).passed
    assert not judged(truth, [0, 2], [1.0, 2.0]).passed
    assert not judged(truth, [0, 1], [2.0, 4.0]).passed


@pytest.mark.parametrize("experts", [[1, 2], [3, 3], [7, 0], [-1, 0]])
def test_a_wrong_choice_makes_no_truth_of_its_own(experts):
    assert judged(choice(TIED), experts, [1.0, 2.0]).passed
    assert not judged(choice(TIED), experts, [float(sum(experts)), 2.0 * sum(experts)]).passed


def test_choices_of_a_wrong_shape():
    actual = {"ids": torch.zeros(1, 3), "out": torch.tensor([[1.0, 2.0]])}
    assert MixtureOutput(WITHIN, "ids").judge("out", actual, {"out": mixed(choice(TIED))}).passed


def test_nan_never_passes():
    assert not judged(choice(TIED), [0, 1], [float("nan"), 2.0]).passed


def test_only_the_tokens_that_differ_are_computed_again():
    table = torch.tensor([CLEAR, TIED], dtype=torch.float64)
    truth = Choice(torch.tensor([[1, 2], [0, 1]]), table, table[:, :1], 1, 1e-3)
    asked = []

    def of_others(rows, experts):
        asked.append((rows.tolist(), experts.tolist()))
        return sums(rows, experts)

    found = Mixed(sums(None, truth.experts), truth, of_others).with_experts(torch.tensor([[2, 1], [2, 0]]))
    assert asked == [([1], [[2, 0]])]
    assert found.tolist() == [[3.0, 6.0], [2.0, 4.0]]


def test_backends_agree_where_they_chose_alike():
    one = {"ids": torch.tensor([[0, 1], [0, 1]]), "out": torch.tensor([[1.0], [1.0]])}
    other = {"ids": torch.tensor([[1, 0], [0, 2]]), "out": torch.tensor([[1.0], [2.0]])}
    finding = MixtureOutput(WITHIN, "ids").agree("out", one, other)
    assert (finding.passed, finding.elements) == (True, 1)
    other["out"][0] = 2.0
    assert not MixtureOutput(WITHIN, "ids").agree("out", one, other).passed
