"""Paged caches: how long each sequence is, and which pages of the pool are whose."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.factory import TensorFactory


@dataclass(frozen=True)
class Pages:
    """All int32, on the device of the problem.

    Attributes:
        block_tables: (batch, pages per sequence); every sequence owns as many pages as the longest could need.
        kv_indptr: (batch + 1), first page of each sequence in ``kv_indices``.
        kv_indices: page numbers in use, sequence by sequence.
        lengths: (batch,) tokens of each sequence.
    """

    block_tables: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    lengths: torch.Tensor

    @property
    def pool_pages(self) -> int:
        return self.block_tables.numel()


def kv_lengths(make: TensorFactory, batch_size: int, longest: int, page_size: int, random: bool) -> torch.Tensor:
    """(batch,) int32 on the CPU: uniform on 1 … longest, or all the longest.

    Raises:
        DoesNotFit: when the page table alone is too large; lengths that need more than 32 bits end here.
    """
    make.reserve("kv_len", (batch_size,), DType.FLOAT32)
    make.reserve("block_tables", (2 * batch_size, -(-longest // page_size)), DType.FLOAT32)
    if random:
        return make.lengths(batch_size, longest)
    return torch.full((batch_size,), longest, dtype=torch.int32)


def page_pool(make: TensorFactory, lengths: torch.Tensor, longest: int, page_size: int) -> Pages:
    """Pages of a pool in which each sequence owns a run of pages, shuffled within it."""
    batch_size, per_sequence = len(lengths), -(-longest // page_size)
    order = torch.rand(batch_size, per_sequence, generator=make.generator("block_tables")).argsort(dim=1)
    tables = (order + torch.arange(batch_size)[:, None] * per_sequence).to(torch.int32)
    used = (lengths + page_size - 1) // page_size
    kv_indptr = torch.zeros(batch_size + 1, dtype=torch.int32)
    kv_indptr[1:] = used.cumsum(0)
    kv_indices = tables[torch.arange(per_sequence) < used[:, None]]
    on_device = (tensor.to(make.device) for tensor in (tables, kv_indptr, kv_indices, lengths))
    return Pages(*on_device)
