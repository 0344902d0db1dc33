"""Bytes between ranks. What stays on a rank counts nothing."""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.run.ranks import Ranks

CHOICE_BYTES = 8
"""Of a token's choice of one expert: its number and its weight, four bytes each. All of a token's choices travel."""


class Traffic(NamedTuple):
    """Bytes over all ranks that an exchange cannot do without: a token goes once to each other rank that it needs."""

    dispatch: int
    combine: int

    @property
    def text(self) -> str:
        """'dispatch=1.000 MiB, combine=2.000 MiB'."""
        return ", ".join(f"{name}={count / 2**20:.3f} MiB" for name, count in self._asdict().items())


def row_bytes(case: MoeCommFlags) -> Traffic:
    """Of one row: what dispatch sends and what combine sends back, which is not quantised."""
    format, size = WIRE_FORMATS[case.quant_dtype], case.input_dtype.bytes
    hidden = format.hidden_bytes(case.hidden_size, size) + format.scale_bytes(case.hidden_size)
    return Traffic(hidden + CHOICE_BYTES * case.top_k, int(case.hidden_size * size))


def traffic(case: MoeCommFlags, expert_ids: torch.Tensor, ranks: Ranks) -> Traffic:
    """Of one call. Every rank must ask, with the (tokens, top_k) experts of its own tokens."""
    wanted = Experts(case.num_experts, ranks.size).wanted(expert_ids)
    remote = int(wanted.sum()) - int(wanted[:, ranks.rank].sum())
    rows = sum(ranks.all_gather(remote))
    each = row_bytes(case)
    return Traffic(rows * each.dispatch, rows * each.combine)
