"""Paged caches: which pages of a pool are whose, and the pool itself."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.sequences import offsets
from flashinfer_perf.run.factory import TensorFactory


@dataclass(frozen=True)
class Pages:
    """All int32, on the device of the problem.

    Attributes:
        block_tables: (batch, pages per sequence); every sequence owns as many pages as the longest could need.
        kv_indptr: (batch + 1,), first page of each sequence in ``kv_indices``.
        kv_indices: page numbers in use, sequence by sequence.
        kv_last_page_len: (batch,) tokens in the last page of each sequence.
        kv_len: (batch,) tokens of each sequence.
    """

    block_tables: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    kv_last_page_len: torch.Tensor
    kv_len: torch.Tensor

    @property
    def per_sequence(self) -> int:
        return self.block_tables.shape[1]

    @property
    def in_pool(self) -> int:
        return self.block_tables.numel()


def shuffled_pages(make: TensorFactory, kv_lens: torch.Tensor, longest: int, page_size: int) -> Pages:
    """Pages of a pool in which each sequence owns a run of pages, shuffled within it.

    Raises:
        DoesNotFit: when the page table alone is too large.
    """
    batch_size, per_sequence = len(kv_lens), -(-longest // page_size)
    make.reserve("block_tables", (2 * batch_size, per_sequence), DType.FLOAT32)
    order = torch.rand(batch_size, per_sequence, generator=make.generator("block_tables")).argsort(dim=1)
    tables = (order + torch.arange(batch_size)[:, None] * per_sequence).to(torch.int32)
    used = (kv_lens + page_size - 1) // page_size
    kv_indices = tables[torch.arange(per_sequence) < used[:, None]]
    last_page_len = (kv_lens - 1) % page_size + 1
    parts = (tables, offsets(used), kv_indices, last_page_len, kv_lens)
    return Pages(*(part.to(make.device) for part in parts))


def key_value_pool(
    make: TensorFactory, pages: int, heads: int, page_size: int, dims: tuple[int, int], dtype: DType, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as views of one storage, (pages, heads, page size, dim) each.

    A page holds its keys, then its values, token by token and then head by head: for equal dims the views are the
    halves of the documented pool (pages, 2, heads, page size, dim) with strides (2 P H D, P H D, D, H D, 1).

    Args:
        scale: that of the keys; values are drawn with it, too, and stand for as much more as their own is larger.
    """
    key_elements, value_elements = (page_size * heads * dim for dim in dims)
    per_page = key_elements + value_elements
    pool = make.normal("kv_cache", (pages * per_page,), dtype, scale)
    starts = (0, key_elements)
    keys, values = (
        pool.as_strided((pages, heads, page_size, dim), (per_page, dim, heads * dim, 1), start)
        for dim, start in zip(dims, starts, strict=True)
    )
    return keys, values


def whole_pool(keys: torch.Tensor) -> torch.Tensor:
    """The pool (pages, 2, heads, page size, dim) of which these keys are the first half."""
    pages, heads, page_size, dim = keys.shape
    shape = (pages, 2, heads, page_size, dim)
    return keys.as_strided(shape, (keys.stride(0), keys.stride(0) // 2, *keys.stride()[1:]))


def gathered(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first tokens of a sequence, (length, heads, dim), from (pages, heads, page size, dim) by its page numbers."""
    return taken(cache, table[: -(-length // cache.shape[2])]).transpose(1, 2).flatten(0, 1)[:length]


def taken(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """These pages of a cache. FP8 is moved as bytes: torch has no indexing of it everywhere."""
    if cache.dtype.itemsize > 1:
        return cache.index_select(0, pages)
    return cache.view(torch.uint8).index_select(0, pages).view(cache.dtype)
