"""Chains: which can come out. Their laws are tested with the routine, with kernels that break them."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.speculative import AcceptedCount, Chains, ChainTokens, EmittedCount, well_formed
from flashinfer_perf.run.launch import Launch

IDS = torch.tensor([[3, 1], [0, 2]])
ACCEPT = torch.tensor([[0.5, 1.0], [0.25, 0.0]], dtype=torch.float64)


def truth() -> Chains:
    """Four tokens; even ones may follow the first chain, and any the second."""
    possible = torch.ones(2, 3, 4, dtype=torch.bool)
    possible[0, :, 1::2] = False
    return Chains(IDS, ACCEPT, possible, torch.full((3, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize(
    ("tokens", "right"),
    [
        ([[0, -1, -1], [3, -1, -1]], [True, True]),
        ([[3, 1, 2], [0, 1, -1]], [True, True]),
        ([[3, 0, -1], [0, 2, 1]], [False, False]),  # the second one is always accepted, or never
        ([[2, 1, 2], [1, 1, -1]], [False, False]),  # another draft token
        ([[1, -1, -1], [4, -1, -1]], [False, False]),  # cannot follow, out of range
        ([[-1, -1, -1], [-2, -1, -1]], [False, False]),
        ([[-1, 0, -1], [0, -1, 1]], [False, False]),  # padding before a token
        ([[0, -1, 0], [0, 1, -2]], [False, False]),
    ],
)
def test_which_chains_can_come_out(tokens: list[list[int]], right: list[bool]):
    assert well_formed(torch.tensor(tokens), truth()).tolist() == right


def test_counts_belong_to_the_tokens():
    tokens = torch.tensor([[3, 1, 2], [0, 1, -1]])

    def passes(check: EmittedCount, counts: list[int]) -> bool:
        found = {"tokens": tokens, "count": torch.tensor(counts)}
        return check.judge("count", found, {"count": truth()}).passed

    assert passes(EmittedCount("tokens"), [2, 1])
    assert not any(passes(EmittedCount("tokens"), counts) for counts in ([2, 2], [1, 1], [2]))
    assert passes(AcceptedCount("tokens"), [2, 1])
    assert passes(AcceptedCount("tokens"), [2, 2])
    assert not any(passes(AcceptedCount("tokens"), counts) for counts in ([2, 0], [3, 1], [1, 1], [2]))


def test_another_shape_fails():
    assert not ChainTokens().judge("x", {"x": torch.zeros(2, 2)}, {"x": truth()}).passed


def test_a_kernel_that_cannot_be_asked_for_draws_is_not_passed():
    finding = ChainTokens().probe("x", Launch(lambda: None), {"x": truth()})
    assert finding is not None
    assert "draw" in finding.detail
