"""Exchange of the rows that are needed and no others: they are packed for their receivers, after their numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.exchange import Arrived
from flashinfer_perf.routines.moe_comm.routing import Experts

ALIGNMENT = 16
"""Bytes that each part of a packed row starts at a multiple of, so that it can be read as what it is."""


class Way(NamedTuple):
    """Where rows went and came from.

    Attributes:
        sent: how many rows went to each rank; received: how many came from each.
        order: (tokens, ranks) int32: which of the sent rows is a token's to a rank; -1 where none is.
    """

    sent: list[int]
    received: list[int]
    order: torch.Tensor


class PackedExchange:
    """Over a group of torch.distributed. The receivers must know how many rows come, so the host waits for the counts;
    meanwhile the rows are packed.

    Args:
        group: a process group; None for the default one.
        capacity: rows that at most come from one rank.
        columns: of hidden states; dtype: of the results that are sent back.
    """

    host_sync = True
    wire_rows = -1
    name = "packed"
    marked = True

    def __init__(
        self, group: Any, experts: Experts, *, capacity: int, columns: int, dtype: torch.dtype, device: Any
    ) -> None:
        self._group = group
        self._experts = experts
        slots = experts.ranks * capacity
        self._answers = torch.zeros(slots, columns, dtype=dtype, device=device)
        self._returned = torch.empty_like(self._answers)

    def dispatch(self, rows: tuple[torch.Tensor, ...]) -> Arrived:
        order, counts = plan(self._experts, rows[0])
        sent, received = counts
        counted = torch.distributed.all_to_all_single(received, sent, group=self._group, async_op=True)
        packed = pack(rows, order)
        counted.wait()
        way = Way(*counts.tolist(), order)
        arrived = packed.new_empty(sum(way.received), packed.shape[1])
        self._all_to_all(arrived, packed[: sum(way.sent)], way.received, way.sent)
        return Arrived(unpack(arrived, rows), way)

    def used(self, arrived: Arrived) -> torch.Tensor:
        return torch.ones(len(arrived.rows[0]), dtype=torch.bool, device=self._answers.device)

    def answers(self, arrived: Arrived) -> torch.Tensor:
        return self._answers[: len(arrived.rows[0])]

    def combine(self, arrived: Arrived, out: torch.Tensor) -> None:
        way: Way = arrived.way
        returned = self._returned[: sum(way.sent)]
        self._all_to_all(_bytes(returned), _bytes(self.answers(arrived)), way.sent, way.received)
        add_up(returned, way.order, out)

    def _all_to_all(self, output: torch.Tensor, input: torch.Tensor, *splits: list[int]) -> None:
        torch.distributed.all_to_all_single(output, input, *splits, group=self._group)


def plan(experts: Experts, expert_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's row for each rank, (tokens, ranks) int32, -1 for none; and a pair of (ranks,) int64, how many rows
    there are for each, and room for how many come. Rows for rank 0 come first, then those for rank 1, and so on.
    """
    if expert_ids.is_cuda:
        from flashinfer_perf.kernels.token_rows import plan_rows

        order = expert_ids.new_empty(len(expert_ids), experts.ranks)
        counts = torch.empty(2, experts.ranks, dtype=torch.int64, device=expert_ids.device)
        plan_rows(expert_ids, experts.per_rank, order, counts[0])
        return order, counts
    wanted = experts.wanted(expert_ids).T
    rows = wanted.flatten().cumsum(0).view(wanted.shape) - 1
    counts = wanted.sum(dim=1)
    return torch.where(wanted, rows, -1).T.int(), torch.stack([counts, torch.zeros_like(counts)])


def pack(rows: tuple[torch.Tensor, ...], order: torch.Tensor) -> torch.Tensor:
    """(rows, bytes): all parts of a token in each of its rows, of which it has no more than experts, the first part.

    What is behind the last row is not filled.
    """
    starts, width = _places(rows)
    most = len(order) * min(order.shape[1], rows[0].shape[1])
    packed = torch.empty(most, width, dtype=torch.uint8, device=order.device)
    parts = [_bytes(part) for part in rows]
    if packed.is_cuda:
        from flashinfer_perf.kernels.token_rows import pack_rows

        pack_rows(parts, order, packed, starts)
        return packed
    token, rank = (order >= 0).nonzero(as_tuple=True)
    row = order[token, rank].long()
    packed[row] = 0
    for start, part in zip(starts, parts, strict=True):
        packed[row, start : start + part.shape[1]] = part[token]
    return packed


def unpack(packed: torch.Tensor, like: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The parts of packed rows, as views of the formats and widths that they were packed from."""
    starts, _ = _places(like)
    widths = [part.shape[1] * part.element_size() for part in like]
    parts = zip(like, starts, widths, strict=True)
    return tuple(packed[:, start : start + width].view(part.dtype) for part, start, width in parts)


def add_up(returned: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out[t] = sum over ranks r of returned[order[t, r]], in fp32, rounded once."""
    if out.is_cuda:
        from flashinfer_perf.kernels.token_rows import sum_rows

        sum_rows(returned, order, out)
        return
    token, rank = (order >= 0).nonzero(as_tuple=True)
    total = torch.zeros(out.shape, dtype=torch.float32)
    out.copy_(total.index_add_(0, token, returned[order[token, rank].long()].float()))


def _places(rows: tuple[torch.Tensor, ...]) -> tuple[list[int], int]:
    """Where parts begin in a packed row, and how wide that is, in bytes."""
    ends = [0]
    for part in rows:
        width = part.shape[1] * part.element_size()
        ends.append(ends[-1] + width + -width % ALIGNMENT)
    return ends[:-1], ends[-1]


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """As bytes: not every library knows every number format."""
    return rows.contiguous().view(torch.uint8)
