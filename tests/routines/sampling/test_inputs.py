"""Inputs of the sampling family."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.routines.sampling import inputs
from flashinfer_perf.routines.sampling.flags import DISTRIBUTIONS
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import GIBIBYTE


def factory():
    return TensorFactory("cpu", 1, GIBIBYTE, SingleRank())


def logits(distribution, dtype=DType.FLOAT32):
    return inputs.logits(factory(), "logits", (6, 5000), dtype, distribution).float()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_probabilities_sum_to_one(distribution):
    probs = inputs.probabilities(factory(), (5, 300), distribution)
    assert (probs.shape, probs.dtype) == ((5, 300), torch.float32)
    assert bool((probs >= 0).all())
    torch.testing.assert_close(probs.double().sum(dim=-1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_by_default_probabilities_are_uniform_numbers_as_upstreams_are():
    probs = inputs.probabilities(factory(), (5, 300))
    relative = probs / probs.amax(dim=-1, keepdim=True)
    assert 0.45 < float(relative.mean()) < 0.55


def test_peaked_means_that_ten_tokens_hold_most_of_the_mass():
    probs = inputs.probabilities(factory(), (16, 128256), "peaked")
    assert float(probs.topk(10, dim=-1).values.sum(dim=-1).mean()) > 0.5
    assert float(inputs.probabilities(factory(), (16, 128256)).topk(10, dim=-1).values.sum(dim=-1).mean()) < 1e-3


def test_ties_are_exact():
    probs = inputs.probabilities(factory(), (3, 5000), "ties")
    assert all(len(row.unique()) <= inputs.LEVELS for row in probs)
    assert len(logits("ties").unique()) < 50


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_ties_are_the_same_in_every_format(dtype):
    drawn = logits("ties", dtype)
    assert torch.equal(drawn, (drawn / inputs.STEP).round() * inputs.STEP)


def test_logits_are_as_wide_as_they_say():
    assert float(logits("normal").std()) == pytest.approx(1, rel=0.05)
    assert float(logits("peaked").std()) == pytest.approx(inputs.PEAK, rel=0.05)
    assert 0 <= float(logits("uniform").min()) < float(logits("uniform").max()) < 1


def test_replicated_rows_are_a_copy():
    """A view would be shared by all rows, and a kernel reads a contiguous matrix."""
    row = torch.rand(1, 7)
    batch = inputs.replicated(row, 3)
    assert batch.is_contiguous()
    assert all(torch.equal(each, row[0]) for each in batch)
    row.zero_()
    assert bool((batch > 0).any())
    assert inputs.replicated(torch.rand(1, 2, 5), 3).shape == (3, 2, 5)


def test_positions_must_fit_32_bits():
    text = r"offsets are 32-bit integers: num_rows \(65536\) times max_len \(32768\) must be below 2\^31"
    with pytest.raises(InvalidInput, match=text):
        inputs.offsets(factory(), 65536, 32768)
    with pytest.raises(InvalidInput, match=r"page table entries are 32-bit integers: batch_size \(65536\)"):
        inputs.page_table(TensorFactory("cpu", 1, 100 * GIBIBYTE, SingleRank()), 65536, 32768)
    assert inputs.offsets(factory(), 65536, 32767).tolist()[-1] == 65535 * 32767
