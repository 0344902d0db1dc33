"""A call over an exchange: its phases, what they are called, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.exchange import Arrived, Exchange, combine, dispatch
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.mixture import Compute, weights_among
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.routines.moe_comm.traffic import row_bytes
from flashinfer_perf.routines.moe_comm.validation import fill_in
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.problem import Problem

DISPATCH, KERNEL, COMBINE, TOTAL = "a2a_dispatch", "moe_kernel", "a2a_combine", "a2a_total"
"""As the documents call them."""
NVTX_RANGES = {DISPATCH: "moe_a2a_dispatch", KERNEL: "moe_compute", COMBINE: "moe_a2a_combine"}
NO_GRAPH = "Exchanges between ranks are launched one by one, on one rank as on several."
NO_CUPTI = "--nvtx marks phases for a profiler, beside which CUPTI cannot record: CUDA events are used."


def launch_over(
    case: MoeCommFlags, problem: Problem, exchange: Exchange, compute: Compute | None = None, *, by: str = ""
) -> Launch:
    """The call that is timed. Every rank must make it: it exchanges rows once.

    Args:
        compute: the experts of this rank; without, each rank answers with rows that are there before.
        by: whose kernels those are.
    """
    exchange.marked |= compute is not None
    launch = Launch(
        phases=_phases(case, compute is not None),
        timed_apart=case.per_phase_timing,
        total_name=TOTAL,
        kwargs={
            **problem.tensors,
            "exchange": exchange,
            "out": torch.empty(
                case.num_tokens, case.hidden_size, dtype=case.input_dtype.torch, device=problem["weights"].device
            ),
            **({"compute": compute} if compute else {}),
        },
        mutates=("out",),
        host_sync=exchange.host_sync,
        no_graph=NO_GRAPH,
        no_cupti=NO_CUPTI if case.nvtx else "",
        facts={
            "exchange": exchange.name,
            "experts_by": by if compute else "",
            "sent_bytes": sent_bytes(case, problem, exchange),
        },
    )
    if compute is None:
        fill_in(launch, Experts(case.num_experts, problem.ranks.size), problem.ranks.rank)
    return launch


def sent_bytes(case: MoeCommFlags, problem: Problem, exchange: Exchange) -> int:
    """What a call really moves between ranks: some exchanges send rows that nobody needs."""
    if exchange.wire_rows < 0:
        return int(problem.facts["dispatch_bytes"] + problem.facts["combine_bytes"])
    return exchange.wire_rows * sum(row_bytes(case))


def kernel(arrived: Arrived, *, exchange: Exchange, compute: Compute, **call: Any) -> Arrived:
    """The middle phase of a call with experts."""
    compute(arrived.rows, exchange.answers(arrived), **weights_among(call))
    return arrived


def _phases(case: MoeCommFlags, computed: bool) -> tuple[Phase, ...]:
    functions = {DISPATCH: dispatch, **({KERNEL: kernel} if computed else {}), COMBINE: combine}
    return tuple(Phase(name, _marked(name, fn) if case.nvtx else fn) for name, fn in functions.items())


def _marked(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A phase with an NVTX range of its own around it, where there is CUDA."""
    if not torch.cuda.is_available():
        return fn

    def call(previous: Any, **kwargs: Any) -> Any:
        with torch.cuda.nvtx.range(NVTX_RANGES[name]):
            return fn(previous, **kwargs)

    return call
