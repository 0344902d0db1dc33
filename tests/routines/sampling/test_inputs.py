"""Inputs of the sampling family."""

from __future__ import annotations

import torch

from flashinfer_perf.routines.sampling import inputs
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import GIBIBYTE


def test_probabilities_are_uniform_numbers_that_sum_to_one():
    probs = inputs.probabilities(TensorFactory("cpu", 1, GIBIBYTE, SingleRank()), 5, 300)
    assert (probs.shape, probs.dtype) == ((5, 300), torch.float32)
    assert bool((probs >= 0).all())
    torch.testing.assert_close(probs.double().sum(dim=-1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)
    relative = probs / probs.amax(dim=-1, keepdim=True)
    assert 0.45 < float(relative.mean()) < 0.55


def test_replicated_rows_are_a_copy():
    """A view would be shared by all rows, and a kernel reads a contiguous matrix."""
    row = torch.rand(7)
    batch = inputs.replicated(row, 3)
    assert batch.is_contiguous()
    assert all(torch.equal(each, row) for each in batch)
    row.zero_()
    assert bool((batch > 0).any())
