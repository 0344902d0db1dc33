"""Exact distributions of the samplers, against the definition in plain Python."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.sampling import reference


def by_definition(row, k):
    """Tokens with fewer than k strictly larger ones, in proportion to their probability."""
    kept = [p if sum(other > p for other in row) < k else 0.0 for p in row]
    return [p / sum(kept) for p in kept]


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
def test_top_k(k):
    probs = torch.rand(6, 12, generator=torch.Generator().manual_seed(k))
    samples = reference.top_k(probs, top_k=k)["samples"]
    assert samples.dtype is torch.float64
    assert ((samples > 0).sum(dim=-1) == k).all()
    expected = [by_definition(row, k) for row in probs.double().tolist()]
    torch.testing.assert_close(samples, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_ties_at_the_threshold_all_stay():
    samples = reference.top_k(torch.tensor([[0.4, 0.2, 0.2, 0.2]]), top_k=2)["samples"]
    torch.testing.assert_close(samples, torch.tensor([[0.4, 0.2, 0.2, 0.2]]).double(), rtol=1e-7, atol=0)


def test_k_beyond_the_vocabulary_keeps_everything():
    probs = torch.tensor([[0.5, 0.25, 0.25]])
    assert torch.equal(reference.top_k(probs, top_k=9)["samples"], probs.double())
