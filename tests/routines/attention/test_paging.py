"""Paged caches: lengths as documented, every sequence its own shuffled pages, and a pool that must fit."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.routines.attention import paging
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import GIBIBYTE


def factory(seed=42, free_bytes=GIBIBYTE):
    return TensorFactory("cpu", seed, free_bytes, SingleRank())


def lengths_of(make, batch_size, longest, page_size=16, random=True):
    return paging.kv_lengths(make, batch_size, longest, page_size, random)


def test_lengths_are_the_documented_ones():
    assert lengths_of(factory(), 16, 1024)[:3].tolist() == [103, 436, 861]


def test_lengths_of_a_larger_batch_begin_with_those_of_a_smaller():
    assert lengths_of(factory(), 64, 500)[:5].tolist() == lengths_of(factory(), 5, 500).tolist()


def test_lengths_are_the_seeds_alone():
    assert torch.equal(lengths_of(factory(7), 9, 100, page_size=1), lengths_of(factory(7), 9, 100, page_size=64))
    assert not torch.equal(lengths_of(factory(7), 9, 100), lengths_of(factory(8), 9, 100))


@pytest.mark.parametrize("longest", [1, 2, 3, 1000])
def test_lengths_reach_from_one_to_the_longest(longest):
    lengths = lengths_of(factory(), 4000, longest)
    assert lengths.dtype is torch.int32
    assert (int(lengths.min()), int(lengths.max())) == (1, longest) if longest < 1000 else int(lengths.max()) <= 1000


def test_all_are_the_longest_unless_random():
    assert lengths_of(factory(), 3, 77, random=False).tolist() == [77, 77, 77]


@pytest.mark.parametrize(
    ("batch_size", "longest", "page_size"), [(1, 1, 1), (1, 1, 64), (5, 33, 1), (4, 30, 7), (3, 10, 64), (6, 64, 16)]
)
def test_pages(batch_size, longest, page_size):
    make = factory()
    lengths = lengths_of(make, batch_size, longest, page_size)
    pages = paging.page_pool(make, lengths, longest, page_size)
    per_sequence = -(-longest // page_size)
    used = [-(-length // page_size) for length in lengths.tolist()]
    assert pages.block_tables.shape == (batch_size, per_sequence)
    assert pages.pool_pages == batch_size * per_sequence
    for sequence, table in enumerate(pages.block_tables.tolist()):
        assert sorted(table) == list(range(sequence * per_sequence, (sequence + 1) * per_sequence))
        start, end = pages.kv_indptr[sequence : sequence + 2].tolist()
        assert end - start == used[sequence]
        assert pages.kv_indices[start:end].tolist() == table[: used[sequence]]
    assert (pages.kv_indptr[0], pages.kv_indptr[-1]) == (0, len(pages.kv_indices))
    assert torch.equal(pages.lengths, lengths)
    for tensor in (pages.block_tables, pages.kv_indptr, pages.kv_indices, pages.lengths):
        assert tensor.dtype is torch.int32
        assert tensor.is_contiguous()


def test_pages_are_shuffled_and_each_sequence_in_its_own_way():
    make = factory()
    tables = paging.page_pool(make, lengths_of(make, 3, 512, 4), 512, 4).block_tables
    first, second, _ = (row - row.min() for row in tables)
    assert not torch.equal(first, torch.arange(128, dtype=torch.int32))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "longest", "page_size"), [(1 << 20, 1 << 20, 1), (1 << 40, 1, 1), (1, 1 << 45, 1), (2, 1 << 34, 1)]
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(batch_size, longest, page_size, random):
    make = factory()
    with pytest.raises(DoesNotFit, match=r"bytes\) are free"):
        paging.page_pool(make, lengths_of(make, batch_size, longest, page_size, random), longest, page_size)
