"""Paged caches: every sequence its own shuffled pages, the documented layout, and a pool that must fit."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.routines.attention import paging
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.sequences import decoding
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Copies
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import GIBIBYTE

FORMATS = [DType.BFLOAT16, DType.FLOAT16, DType.FP8_E4M3, DType.FP8_E5M2]


def factory(seed=42, free_bytes=GIBIBYTE):
    return TensorFactory("cpu", seed, free_bytes, SingleRank())


def pages_of(batch_size, longest, page_size, random=True, make=None):
    """Pages for sequences that are decoded."""
    make = make or factory()
    lengths = {"batch_size": batch_size, "s_kv": longest, "random_actual_seq_len": random}
    kv_lens = decoding(AttentionFlags(num_qo_heads=1, num_kv_heads=1, **lengths), make).kv_lens
    return paging.shuffled_pages(make, kv_lens, longest, page_size), kv_lens


def pool_of(pages=5, heads=3, page_size=4, dims=(8, 8), dtype=DType.BFLOAT16, scale=1.0):
    return paging.key_value_pool(factory(), pages, heads, page_size, dims, dtype, scale)


def bits(tensor):
    """For comparisons: torch has none of FP8 everywhere."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor.view(torch.int16)


# ---- Which pages are whose ----


@pytest.mark.parametrize(
    ("batch_size", "longest", "page_size"), [(1, 1, 1), (1, 1, 64), (5, 33, 1), (4, 30, 7), (3, 10, 64), (6, 64, 16)]
)
def test_pages(batch_size, longest, page_size):
    pages, kv_lens = pages_of(batch_size, longest, page_size)
    per_sequence = -(-longest // page_size)
    used = [-(-length // page_size) for length in kv_lens.tolist()]
    assert pages.block_tables.shape == (batch_size, per_sequence)
    assert (pages.per_sequence, pages.in_pool) == (per_sequence, batch_size * per_sequence)
    for sequence, table in enumerate(pages.block_tables.tolist()):
        assert sorted(table) == list(range(sequence * per_sequence, (sequence + 1) * per_sequence))
        start, end = pages.kv_indptr[sequence : sequence + 2].tolist()
        assert end - start == used[sequence]
        assert pages.kv_indices[start:end].tolist() == table[: used[sequence]]
    assert (pages.kv_indptr[0], pages.kv_indptr[-1]) == (0, len(pages.kv_indices))
    assert torch.equal(pages.kv_len, kv_lens)
    for tensor in vars(pages).values():
        assert tensor.dtype is torch.int32
        assert tensor.is_contiguous()


@pytest.mark.parametrize(("page_size", "last"), [(1, [1, 1, 1, 1, 1]), (4, [1, 3, 4, 1, 4]), (64, [1, 3, 4, 5, 8])])
def test_the_last_page_holds_the_rest_or_is_full(page_size, last):
    pages = paging.shuffled_pages(factory(), torch.tensor([1, 3, 4, 5, 8], dtype=torch.int32), 9, page_size)
    assert pages.kv_last_page_len.tolist() == last
    used = pages.kv_indptr.diff()
    assert ((used - 1) * page_size + pages.kv_last_page_len).tolist() == [1, 3, 4, 5, 8]


def test_pages_are_shuffled_and_each_sequence_in_its_own_way():
    tables = pages_of(3, 512, 4)[0].block_tables
    first, second, _ = (row - row.min() for row in tables)
    assert not torch.equal(first, torch.arange(128, dtype=torch.int32))
    assert not torch.equal(first, second)


def test_the_seed_shuffles():
    tables = [pages_of(3, 64, 1, make=factory(seed))[0].block_tables for seed in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


# ---- The pool ----


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("pages", "heads", "page_size", "dim"), [(1, 1, 1, 1), (5, 3, 4, 8), (2, 1, 64, 16)])
def test_keys_and_values_are_halves_of_the_documented_pool(pages, heads, page_size, dim, dtype):
    keys, values = pool_of(pages, heads, page_size, (dim, dim), dtype)
    half = page_size * heads * dim
    for half_pool, offset in ((keys, 0), (values, half)):
        assert half_pool.shape == (pages, heads, page_size, dim)
        assert half_pool.stride() == (2 * half, dim, heads * dim, 1)
        assert half_pool.storage_offset() == offset
        assert half_pool.dtype is dtype.torch
    assert keys.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert keys.untyped_storage().nbytes() == 2 * pages * half * dtype.bytes
    pool = paging.whole_pool(keys)
    assert pool.shape == (pages, 2, heads, page_size, dim)
    assert pool.stride() == (2 * half, half, dim, heads * dim, 1)
    assert pool.data_ptr() == keys.data_ptr()
    assert torch.equal(bits(pool[:, 0]), bits(keys))
    assert torch.equal(bits(pool[:, 1]), bits(values))


def test_a_page_holds_its_keys_then_its_values_token_by_token_then_head_by_head():
    pages, heads, page_size, dims = 3, 2, 4, (6, 5)
    keys, values = pool_of(pages, heads, page_size, dims)
    stored = torch.empty(0, dtype=torch.bfloat16).set_(keys.untyped_storage()).tolist()
    found = []
    for page in range(pages):
        for half in (keys, values):
            for token in range(page_size):
                for head in range(heads):
                    found += half[page, head, token].tolist()
    assert found == stored
    assert keys.shape == (3, 2, 4, 6)
    assert values.shape == (3, 2, 4, 5)
    assert keys.stride() == (88, 6, 12, 1)
    assert values.stride() == (88, 5, 10, 1)
    assert (keys.storage_offset(), values.storage_offset()) == (0, 48)


def test_the_pool_is_drawn_whole_with_the_scale_of_the_keys():
    keys, values = pool_of(dims=(8, 6), dtype=DType.FP8_E4M3, scale=0.02)
    drawn = factory().normal("kv_cache", (5 * 4 * 3 * 14,), DType.FP8_E4M3, 0.02).view(5, -1)
    assert torch.equal(bits(keys.transpose(1, 2)).flatten(1), bits(drawn)[:, :96])
    assert torch.equal(bits(values.transpose(1, 2)).flatten(1), bits(drawn)[:, 96:])
    large = pool_of(pages=100, dtype=DType.FP8_E4M3, scale=0.02)
    for half in large:
        assert float(half.float().std()) == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("dims", [(8, 8), (6, 5)])
def test_copies_of_the_views_are_such_views_again(dims, dtype):
    """The timers' copies of inputs must not make the kernel read another layout, nor twice the memory."""
    cache = dict(zip(("k", "v"), pool_of(dims=dims, dtype=dtype), strict=True))
    copies = Copies().of(cache)
    for name, original in cache.items():
        copy = copies[name]
        assert (copy.shape, copy.stride(), copy.dtype) == (original.shape, original.stride(), original.dtype)
        assert copy.storage_offset() == original.storage_offset()
        assert copy.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
        assert torch.equal(bits(copy), bits(original))
    assert copies["k"].untyped_storage().data_ptr() == copies["v"].untyped_storage().data_ptr()
    assert copies["k"].untyped_storage().nbytes() == cache["k"].untyped_storage().nbytes()


# ---- Sequences out of pages ----


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11, 12])
def test_gathered_are_the_first_tokens_of_the_pages_in_order(length, dtype):
    table = torch.tensor([4, 0, 3], dtype=torch.int32)
    for half in pool_of(dims=(8, 6), dtype=dtype):
        found = paging.gathered(half, table, length)
        assert found.shape == (length, 3, half.shape[-1])
        assert found.dtype is dtype.torch
        for token in range(length):
            page, row = int(table[token // 4]), token % 4
            assert torch.equal(bits(found[token]), bits(half[page, :, row].contiguous()))


@pytest.mark.parametrize("dtype", FORMATS)
def test_taken_are_whole_pages(dtype):
    for half in pool_of(dims=(8, 6), dtype=dtype):
        found = paging.taken(half, torch.tensor([3, 0, 3], dtype=torch.int32))
        assert found.dtype is dtype.torch
        assert torch.equal(bits(found), bits(half)[[3, 0, 3]])


# ---- What cannot fit ----


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "longest", "page_size"), [(1 << 20, 1 << 20, 1), (1 << 40, 1, 1), (1, 1 << 45, 1), (2, 1 << 34, 1)]
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(batch_size, longest, page_size, random):
    """Lengths that need more than 32 bits, too."""
    with pytest.raises(DoesNotFit, match=r"bytes\) are free"):
        pages_of(batch_size, longest, page_size, random)


def test_the_table_is_counted_with_what_its_shuffling_takes():
    make = factory(free_bytes=10_000)
    pages_of(10, 50, 1, make=make)
    with pytest.raises(DoesNotFit) as refused:
        make.reserve("more", (10_000,), DType.FP8_E4M3)
    assert refused.value.needed_bytes == 2 * 10 * 4 + 2 * 10 * 50 * 4 + 10_000


def test_a_pool_that_does_not_fit_is_refused():
    with pytest.raises(DoesNotFit, match="kv_cache") as refused:
        pool_of(pages=1 << 40, dims=(8, 6), dtype=DType.FP8_E4M3)
    assert refused.value.needed_bytes == (1 << 40) * 3 * 4 * 14
