"""Exchange without packing: every rank gets every row, and adds nothing for those that it does not need.

No row is moved before it is sent, nobody has to know how many come, and the host never waits. What it costs is the rows
that are not needed; with 8 experts a token on 2 ranks that is one row in 256.
"""

from __future__ import annotations

from math import comb
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.exchange import Arrived
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.run.ranks import Ranks

WIRE_BYTES_PER_US = 260e3
"""Of a GPU, between two H200s by NVLink through NCCL: 263 GB/s were measured for 59 MB."""
MEMORY_BYTES_PER_US = 4e6
"""Of an H200's memory, of the 4.8 TB/s in its data sheet."""
COUNTS_US = 450.0
"""Of an exchange of counts, the host waiting for it, and launches that nothing hides: on two H200s packing,
which came after the counts then, and sending took 561 us, of which sending was 115.
"""


class WholeExchange:
    """Over a group of torch.distributed: all-gather, and reduce-scatter back.

    Args:
        tokens: of each rank, of all of them the same number.
        columns: of hidden states; dtype: of the results that are sent back.
    """

    host_sync = False
    name = "whole"
    marked = True

    def __init__(
        self, group: Any, experts: Experts, ranks: Ranks, *, tokens: int, columns: int, dtype: torch.dtype, device: Any
    ) -> None:
        self._group = group
        self._experts = experts
        self._rank = ranks.rank
        self._slots = ranks.size * tokens
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._answers = torch.zeros(self._slots, columns, dtype=dtype, device=device)
        self.wire_rows = (ranks.size - 1) * self._slots

    def dispatch(self, rows: tuple[torch.Tensor, ...]) -> Arrived:
        all_gather = _collective("all_gather_single", "all_gather_into_tensor")
        arrived = tuple(self._buffer(number, part) for number, part in enumerate(rows))
        with torch.distributed._coalescing_manager(group=self._group):  # one kernel for all
            for all_rows, own_rows in zip(arrived, rows, strict=True):
                all_gather(all_rows.view(torch.uint8), own_rows.view(torch.uint8), group=self._group)
        return Arrived(arrived, None)

    def used(self, arrived: Arrived) -> torch.Tensor:
        return self._experts.owned_by(self._rank, arrived.rows[0]).any(dim=1)

    def answers(self, arrived: Arrived) -> torch.Tensor:
        return self._answers

    def combine(self, arrived: Arrived, out: torch.Tensor) -> None:
        reduce_scatter = _collective("reduce_scatter_single", "reduce_scatter_tensor")
        reduce_scatter(out, self._answers, group=self._group)

    def _buffer(self, number: int, part: torch.Tensor) -> torch.Tensor:
        key = (number, part.shape[1], part.dtype)
        if key not in self._buffers:
            self._buffers[key] = part.new_empty(self._slots, part.shape[1])
        return self._buffers[key]


def _collective(name: str, former: str) -> Any:
    """Of torch.distributed, by the name that it has since PyTorch 2.12, or by its former one."""
    return getattr(torch.distributed, name, None) or getattr(torch.distributed, former)


def worth_packing(experts: Experts, top_k: int, tokens: int, row_bytes: int) -> bool:
    """Whether leaving out the rows that are not needed saves more time than packing and counting take.

    A token does not need a rank with the probability that all its experts are elsewhere, taking them as equally likely:
    C(E - E/N, K) / C(E, K). Packing reads every row once and writes those that are sent.
    """
    idle = comb(experts.number - experts.per_rank, top_k) / comb(experts.number, top_k)
    everything = (experts.ranks - 1) * tokens * row_bytes
    packing_us = (tokens * row_bytes + (1 - idle) * everything) / MEMORY_BYTES_PER_US
    return idle * everything / WIRE_BYTES_PER_US > packing_us + COUNTS_US
