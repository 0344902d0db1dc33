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
        order: (tokens, ranks) int64: which of the sent rows is a token's to a rank; -1 where none is.
    """

    sent: list[int]
    received: list[int]
    order: torch.Tensor


class PackedExchange:
    """Over a group of torch.distributed. The receivers must know how many rows come, so the host waits for the counts.

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
        self._answers = torch.empty(slots, columns, dtype=dtype, device=device)
        self._returned = torch.empty_like(self._answers)

    def dispatch(self, rows: tuple[torch.Tensor, ...]) -> Arrived:
        wanted = self._experts.wanted(rows[0])
        counts = wanted.sum(dim=0)
        received = torch.empty_like(counts)
        self._all_to_all(received, counts)
        order = torch.where(wanted.T, wanted.T.flatten().cumsum(0).view(wanted.T.shape) - 1, -1).T
        way = Way(counts.tolist(), received.tolist(), order)
        packed = pack(rows, wanted)
        arrived = packed.new_empty(sum(way.received), packed.shape[1])
        self._all_to_all(arrived, packed, way.received, way.sent)
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


def pack(rows: tuple[torch.Tensor, ...], wanted: torch.Tensor) -> torch.Tensor:
    """(sent, bytes): the rows for rank 0, then those for rank 1, and so on; all parts of a token in one."""
    tokens = wanted.T.nonzero()[:, 1]
    if rows[0].is_cuda:
        from flashinfer_perf.kernels.token_rows import gather_rows

        return gather_rows([_bytes(part) for part in rows], tokens, ALIGNMENT)
    return torch.cat([_padded(_bytes(part)[tokens]) for part in rows], dim=1)


def unpack(packed: torch.Tensor, like: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The parts of packed rows, as views of the formats and widths that they were packed from."""
    parts, start = [], 0
    for part in like:
        width = part.shape[1] * part.element_size()
        parts.append(packed[:, start : start + width].view(part.dtype))
        start += -width % ALIGNMENT + width
    return tuple(parts)


def add_up(returned: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out[t] = sum over ranks r of returned[order[t, r]], in fp32, rounded once."""
    if out.is_cuda:
        from flashinfer_perf.kernels.token_rows import sum_rows

        sum_rows(returned, order, out)
        return
    token, rank = (order >= 0).nonzero(as_tuple=True)
    total = torch.zeros(out.shape, dtype=torch.float32)
    out.copy_(total.index_add_(0, token, returned[order[token, rank]].float()))


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """As bytes: not every library knows every number format."""
    return rows.contiguous().view(torch.uint8)


def _padded(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % ALIGNMENT))
