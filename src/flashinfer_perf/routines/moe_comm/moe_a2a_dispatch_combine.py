"""Expert parallelism's two exchanges: tokens go to the ranks that own their experts, results come back and are summed.

Between the two, each rank applies stand-ins for its experts: expert e multiplies by (e + 1) / num_experts + 0.5, so
that a token that went to the wrong rank or expert is found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.requirement import host_memory
from flashinfer_perf.core.routine import Fact, Rule, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.problem import Problem, Shown
from flashinfer_perf.run.process_group import join_process_group
from flashinfer_perf.run.ranks import Ranks

ID_BYTES = 8
"""What a token's choice of one expert costs on the wire: its number and its weight, four bytes each."""


@routine(
    "moe_a2a_dispatch_combine",
    flags=MoeCommFlags,
    uses=("num_tokens", "hidden_size", "num_experts", "top_k", "input_dtype"),
    facts=(
        Fact("ep_size", "ranks that share the experts"),
        Fact("dispatch_bytes", "bytes that dispatch moves between ranks"),
        Fact("combine_bytes", "bytes that combine moves between ranks"),
    ),
    rules=(
        Rule(
            lambda case: case.top_k <= case.num_experts, "top_k ({top_k}) must not exceed num_experts ({num_experts})"
        ),
    ),
    label="test_moe_a2a_dispatch_combine",
)
def moe_a2a(case: MoeCommFlags, make: TensorFactory) -> Problem:
    """MoE all-to-all dispatch and combine for expert-parallel inference; start it with mpirun."""
    ranks = make.ranks
    if case.num_experts % ranks.size:
        raise InvalidInput(f"num_experts ({case.num_experts}) must be divisible by the number of ranks ({ranks.size})")
    hidden = make.normal("hidden", (case.num_tokens, case.hidden_size), case.input_dtype)
    make.reserve("expert_ids", (2 * case.num_tokens, case.num_experts), case.input_dtype)
    draws = torch.rand(case.num_tokens, case.num_experts, generator=make.generator("expert_ids"))
    expert_ids = draws.argsort(dim=1)[:, : case.top_k].to(torch.int32).to(make.device)
    dispatched, combined = traffic(case, expert_ids, ranks)
    return Problem(
        tensors={"hidden": hidden, "expert_ids": expert_ids},
        reference=partial(fake_experts, num_experts=case.num_experts),
        work=Work(flops=0, bytes=dispatched + combined),
        checks={"out": tolerance.for_rounding(case.input_dtype, reduction=case.top_k, roundings=2)},
        ranks=ranks,
        facts={"ep_size": ranks.size, "dispatch_bytes": dispatched, "combine_bytes": combined},
        shown=(Shown("hidden.shape", hidden.shape), Shown("expert_ids.shape", expert_ids.shape)),
    )


def factor(expert_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """What the stand-in of an expert multiplies by."""
    return (expert_ids + 1) / num_experts + 0.5


def fake_experts(hidden: torch.Tensor, expert_ids: torch.Tensor, *, num_experts: int) -> Mapping[str, torch.Tensor]:
    """What comes back to each token when all its experts were applied: (tokens, hidden) in fp64."""
    return {"out": hidden.double() * factor(expert_ids.double(), num_experts).sum(dim=1, keepdim=True)}


def owners(expert_ids: torch.Tensor, experts_per_rank: int, size: int) -> torch.Tensor:
    """(tokens, ranks) booleans: which ranks own at least one of a token's experts."""
    wanted = torch.zeros(len(expert_ids), size, dtype=torch.bool, device=expert_ids.device)
    return wanted.scatter_(1, expert_ids.long() // experts_per_rank, True)


def traffic(case: MoeCommFlags, expert_ids: torch.Tensor, ranks: Ranks) -> tuple[int, int]:
    """Bytes between ranks of dispatch and of combine, over all ranks: a token goes once to each rank that it needs."""
    per_rank = case.num_experts // ranks.size
    remote_rows = int(owners(expert_ids, per_rank, ranks.size).sum()) - int(
        owners(expert_ids, per_rank, ranks.size)[:, ranks.rank].sum()
    )
    remote_choices = int((expert_ids // per_rank != ranks.rank).sum())
    rows, choices = map(sum, zip(*ranks.all_gather((remote_rows, remote_choices)), strict=True))
    row_bytes = int(case.hidden_size * case.input_dtype.bytes)
    return rows * row_bytes + choices * ID_BYTES, rows * row_bytes


@moe_a2a.backend("gloo", requires=(host_memory,))
def gloo(case: MoeCommFlags, problem: Problem) -> Launch:
    """torch.distributed over gloo, on the CPU."""
    join_process_group(problem.ranks)
    return Launch(
        phases=(Phase("dispatch", dispatch), Phase("experts", apply_experts), Phase("combine", combine)),
        kwargs={
            "hidden": problem["hidden"],
            "expert_ids": problem["expert_ids"],
            "out": torch.empty_like(problem["hidden"]),
            "num_experts": case.num_experts,
            "ranks": problem.ranks,
        },
        mutates=("out",),
    )


class Exchange(NamedTuple):
    """Rows on the rank that owns their experts, with the way back.

    Attributes:
        rows: (received, hidden).
        expert_ids: (received, top_k).
        sent: how many rows went to each rank, and received: how many came from each.
        tokens: which token each sent row is.
    """

    rows: torch.Tensor
    expert_ids: torch.Tensor
    sent: list[int]
    received: list[int]
    tokens: torch.Tensor


def dispatch(
    _: None, hidden: torch.Tensor, expert_ids: torch.Tensor, num_experts: int, ranks: Ranks, **__: Any
) -> Exchange:
    """Sends each token once to every rank that owns one of its experts."""
    wanted = owners(expert_ids, num_experts // ranks.size, ranks.size)
    tokens = wanted.T.nonzero()[:, 1]
    sent = wanted.sum(dim=0)
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent)
    counts = (sent.tolist(), received.tolist())
    rows = _exchange(hidden[tokens], *counts)
    return Exchange(rows, _exchange(expert_ids[tokens], *counts), *counts, tokens)


def apply_experts(arrived: Exchange, num_experts: int, ranks: Ranks, **_: Any) -> Exchange:
    """Applies this rank's stand-ins to the rows that arrived, and sums over them."""
    per_rank = num_experts // ranks.size
    own = arrived.expert_ids // per_rank == ranks.rank
    factors = torch.where(own, factor(arrived.expert_ids.float(), num_experts), torch.zeros(()))
    scaled = arrived.rows.float() * factors.sum(dim=1, keepdim=True)
    return arrived._replace(rows=scaled.to(arrived.rows.dtype))


def combine(processed: Exchange, out: torch.Tensor, **_: Any) -> None:
    """Sends every row back to where it came from and sums the rows of each token into out (tokens, hidden)."""
    returned = _exchange(processed.rows, processed.received, processed.sent)
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    out.copy_(total.index_add_(0, processed.tokens, returned.float()))


def _exchange(rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
    """All-to-all of rows, as bytes: gloo does not know every number format."""
    arrived = torch.empty(sum(received), rows.shape[1], dtype=rows.dtype, device=rows.device)
    torch.distributed.all_to_all_single(arrived.view(torch.uint8), rows.contiguous().view(torch.uint8), received, sent)
    return arrived
