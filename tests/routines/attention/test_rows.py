"""Which rows the reference computes: all that are affordable, else a sample drawn with the seed."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.attention import rows as module
from flashinfer_perf.routines.attention.rows import AT_LEAST, reference_rows
from flashinfer_perf.routines.attention.sequences import Sequences
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank

HEADS, DIMS = 4, (6, 10)


def lengths(q_lens, kv_lens):
    return Sequences(*(torch.tensor(lens, dtype=torch.int32) for lens in (q_lens, kv_lens)))


SEQUENCES = lengths([300, 500, 200], [400, 500, 700])
PAIRS = 300 * 400 + 500 * 500 + 200 * 700
FLOPS = 2 * PAIRS * HEADS * (6 + 10)
ELEMENTS = 1000 * HEADS * 10


def rows_of(sequences=SEQUENCES, seed=42):
    return reference_rows(TensorFactory("cpu", seed, 1 << 20, SingleRank()), sequences, HEADS, DIMS)


@pytest.fixture
def budget(monkeypatch):
    """Sets what the reference may cost; by default one of the two limits does not matter."""

    def set_to(flops=1e30, elements=1e30):
        monkeypatch.setattr(module, "FLOPS", float(flops))
        monkeypatch.setattr(module, "ELEMENTS", float(elements))

    return set_to


def test_all_rows_of_a_small_case():
    assert rows_of() is None


@pytest.mark.parametrize(
    ("q_lens", "kv_lens"), [([4] * 16, [1 << 20] * 16), ([1] * 65536, [1] * 65536), ([32768] * 16, [32768] * 16)]
)
def test_a_large_case_is_sampled_whatever_makes_it_large(q_lens, kv_lens):
    """Keys, queries, or both; with 128 heads."""
    make, sequences = TensorFactory("cpu", 42, 1 << 20, SingleRank()), lengths(q_lens, kv_lens)
    assert len(reference_rows(make, sequences, 128, (128, 128))) < sequences.q_tokens


@pytest.mark.parametrize("limit", ["flops", "elements"])
def test_sampling_starts_where_the_budget_ends(limit, budget):
    needed = {"flops": FLOPS, "elements": ELEMENTS}[limit]
    budget(**{limit: needed})
    assert rows_of() is None
    budget(**{limit: needed - 1})
    assert rows_of() is not None


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.02])
@pytest.mark.parametrize(("limit", "needed"), [("flops", FLOPS), ("elements", ELEMENTS)])
def test_as_many_rows_as_the_budget_pays_for(limit, needed, share, budget):
    """And the two ends."""
    budget(**{limit: share * needed})
    assert 1000 * share - 1 <= len(rows_of()) <= 1000 * share + 2


def test_the_tighter_limit_counts(budget):
    budget(flops=0.5 * FLOPS, elements=0.1 * ELEMENTS)
    assert len(rows_of()) <= 102
    budget(flops=0.1 * FLOPS, elements=0.5 * ELEMENTS)
    assert len(rows_of()) <= 102


def test_however_expensive_some_rows_are_computed(budget):
    budget(flops=1)
    assert AT_LEAST <= len(rows_of()) <= AT_LEAST + 2


@pytest.mark.parametrize("tokens", [1, 2, AT_LEAST - 1])
def test_of_few_tokens_all_are_computed(tokens, budget):
    budget(flops=1)
    assert rows_of(lengths([tokens], [9])).tolist() == list(range(tokens))


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_sorted_tokens_on_the_cpu_with_both_ends(seed, budget):
    budget(flops=1)
    rows = rows_of(seed=seed)
    assert (rows.dtype, rows.device.type, rows.ndim) == (torch.int64, "cpu", 1)
    assert (rows.diff() > 0).all()
    assert (int(rows[0]), int(rows[-1])) == (0, 999)


def test_the_seed_draws_them(budget):
    budget(flops=0.05 * FLOPS)
    first, again, other = (rows_of(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.tolist() != other.tolist()


def test_rows_come_from_everywhere(budget):
    budget(flops=0.2 * FLOPS)
    counts = torch.histc(rows_of().float(), bins=10, min=0, max=1000)
    assert (counts > 5).all()
