"""Expert parallelism's two exchanges: tokens go to the ranks that own their experts, results come back and are summed.

What is timed is what the exchange's user pays for: dispatch and combine, and with --real_math the experts between them.
Without, every rank answers with rows that were there before, another on each rank, so that the sums can be checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.requirement import capability, host_memory
from flashinfer_perf.core.routine import Fact, Rule, routine
from flashinfer_perf.core.work import UNCOUNTED, Work
from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.moe_comm import library, one_sided
from flashinfer_perf.routines.moe_comm.backends import (
    between_gpus,
    combined_top_k,
    flashinfer_installed,
    nccl_available,
    whole_words,
)
from flashinfer_perf.routines.moe_comm.calls import COMBINE, DISPATCH, KERNEL, launch_over
from flashinfer_perf.routines.moe_comm.exchange import Exchange
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.mixture import (
    SIZE_MULTIPLES,
    WEIGHT_FORMATS,
    ByTriton,
    LocalExperts,
    allowed,
    by_torch,
    experts_here,
    work_of,
)
from flashinfer_perf.routines.moe_comm.packed import PackedExchange
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS, Payload, global_factor
from flashinfer_perf.routines.moe_comm.routing import Experts, draw_experts, draw_weights, unusual_routings
from flashinfer_perf.routines.moe_comm.stand_in import most_answers, sum_of_answers
from flashinfer_perf.routines.moe_comm.traffic import row_bytes, traffic
from flashinfer_perf.routines.moe_comm.validation import Validated, Validation
from flashinfer_perf.routines.moe_comm.whole import WholeExchange, worth_packing
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown
from flashinfer_perf.run.process_group import join_process_group, nccl_group

AGGREGATE = (
    "The reported achieved tflops/tb_per_sec is the aggregate FLOPS/bandwidth of all participating ranks, over each "
    "iteration's time on its slowest rank."
)
"""Upstream's line speaks of rank 0's times, though it prints the slowest rank's, too."""


@routine(
    "moe_a2a_dispatch_combine",
    flags=MoeCommFlags,
    uses=(
        "num_tokens",
        "hidden_size",
        "num_experts",
        "top_k",
        "input_dtype",
        "quant_dtype",
        "real_math",
        "intermediate_size",
        "max_num_tokens",
        "validate",
        "nvtx",
        "per_phase_timing",
    ),
    facts=(
        Fact("ep_size", "ranks that share the experts"),
        Fact("dispatch_bytes", "bytes that dispatch has to move between ranks"),
        Fact("combine_bytes", "bytes that combine has to move between ranks"),
        Fact("exchange", "how the backend exchanges rows"),
        Fact("experts_by", "whose kernels the experts between the exchanges are, with --real_math"),
        Fact("sent_bytes", "bytes that the backend moves between ranks, rows that nobody needs included"),
    ),
    rules=(
        Rule(
            lambda case: case.top_k <= case.num_experts, "top_k ({top_k}) must not exceed num_experts ({num_experts})"
        ),
        Rule(
            lambda case: case.hidden_size % WIRE_FORMATS[case.quant_dtype].columns == 0,
            "hidden_size ({hidden_size}) must be divisible by the block that shares a scale in {quant_dtype}: "
            "16 for nvfp4, 128 for fp8_block_scale",
        ),
        Rule(
            lambda case: case.capacity >= case.num_tokens,
            "max_num_tokens ({max_num_tokens}) must be at least num_tokens ({num_tokens})",
        ),
        Rule(
            lambda case: not case.real_math or case.quant_dtype in WEIGHT_FORMATS,
            f"--real_math needs --quant_dtype {' or '.join(WEIGHT_FORMATS)}; it is {{quant_dtype}}",
        ),
        Rule(lambda case: not case.real_math or case.intermediate_size, "--real_math needs --intermediate_size"),
        Rule(
            lambda case: case.real_math or not case.intermediate_size,
            "intermediate_size ({intermediate_size}) must come with --real_math, which alone has experts of a size",
        ),
        Rule(
            lambda case: not case.real_math or case.intermediate_size % SIZE_MULTIPLES[case.quant_dtype] == 0,
            "intermediate_size ({intermediate_size}) must be divisible by 64 for nvfp4, by 128 for fp8_block_scale",
        ),
    ),
    label="test_moe_a2a_dispatch_combine",
    several_ranks=True,
)
def moe_a2a(case: MoeCommFlags, make: TensorFactory) -> Problem:
    """MoE all-to-all dispatch and combine for expert-parallel inference; start it with mpirun or torchrun."""
    problem, factor = exchanged(case, make)
    return with_experts(case, make, problem, factor) if case.real_math else problem


def exchanged(case: MoeCommFlags, make: TensorFactory) -> tuple[Problem, float]:
    """The problem without experts, and the factor that hidden states were multiplied by before they were rounded."""
    ranks = make.ranks
    experts = _shared_experts(case, ranks.size)
    make.reserve("slots", (2 * ranks.size * case.capacity, case.hidden_size), case.input_dtype)
    hidden = make.normal("hidden", (case.num_tokens, case.hidden_size), case.input_dtype)
    expert_ids, weights = draw_experts(case, make), draw_weights(case, make)
    format = WIRE_FORMATS[case.quant_dtype]
    factor = global_factor(format, hidden, ranks)
    payload = format.encode(hidden, factor)
    moved = traffic(case, expert_ids, ranks)
    validation = Validation(
        ranks=ranks,
        experts=experts,
        format=format,
        hidden=hidden.clone(),
        payload=type(payload)(*(part.clone() for part in payload if part is not None)),
        factor=factor,
        weights=weights.clone(),
        routings={"drawn": expert_ids.clone(), **unusual_routings(case, make)},
        rounding=tolerance.for_rounding(case.input_dtype, case.top_k, 1 + most_answers(experts, case.top_k)),
        quantisation=tolerance.PAYLOAD_ERROR[case.quant_dtype],
    )
    scales = {"scales": payload.scales} if payload.scales is not None else {}
    tensors = {"expert_ids": expert_ids, "weights": weights, "hidden": payload.hidden, **scales}
    problem = Problem(
        tensors=tensors,
        reference=lambda expert_ids, **_: {"out": sum_of_answers(expert_ids, experts, case.hidden_size)},
        work=Work(UNCOUNTED, bytes=sum(moved)),
        phase_work={DISPATCH: Work(UNCOUNTED, moved.dispatch), COMBINE: Work(UNCOUNTED, moved.combine)},
        checks={"out": Validated(tolerance.EXACT, validation)},
        ranks=ranks,
        facts={"ep_size": ranks.size, "dispatch_bytes": moved.dispatch, "combine_bytes": moved.combine},
        validated=case.validate,
        shown=(
            Shown(f"ep_size={ranks.size}, rank={ranks.rank}", level=1, as_info=True),
            Shown("Inter-rank traffic", moved.text, level=1, as_info=True),
            Shown("hidden.shape", payload.hidden.shape),
            Shown("expert_ids.shape", expert_ids.shape),
        ),
        closing=(Shown(AGGREGATE, level=0, as_info=True),),
    )
    return problem, factor


def with_experts(case: MoeCommFlags, make: TensorFactory, problem: Problem, factor: float) -> Problem:
    """The same with experts between the exchanges: their weights, their work, and the sums that come back."""
    ranks = problem.ranks
    local = LocalExperts(case, make, experts_here(Experts(case.num_experts, ranks.size), ranks.rank))
    work = work_of(case, problem["expert_ids"], ranks)
    check = problem.checks["out"]
    assert isinstance(check, Validated)

    def truth(hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, **_: Any):
        decoded = WIRE_FORMATS[case.quant_dtype].decode(Payload(hidden, scales), factor)
        return {"out": local.truth(decoded, expert_ids, weights)}

    return replace(
        problem,
        tensors={**problem.tensors, **local.draw(), "factor": torch.tensor([factor], device=make.device)},
        reference=truth,
        phase_work={DISPATCH: problem.phase_work[DISPATCH], KERNEL: work, COMBINE: problem.phase_work[COMBINE]},
        checks={"out": replace(check, output=allowed(case, ranks.size, _by_library(case, make.device)))},
    )


def _by_library(case: MoeCommFlags, device: Any) -> bool:
    return library.runs(case, find_machine(str(device)))


def _shared_experts(case: MoeCommFlags, ranks: int) -> Experts:
    if case.num_experts % ranks:
        raise InvalidInput(
            f"num_experts ({case.num_experts}) must be divisible by the number of ranks ({ranks}); "
            f"give a multiple of {ranks}, or start another number of ranks"
        )
    return Experts(case.num_experts, ranks)


@moe_a2a.backend(
    "moe_a2a",
    requires=(capability(minimum="9.0"), flashinfer_installed, combined_top_k, whole_words),
    state=one_sided.workspace_released,
)
def moe_alltoall(case: MoeCommFlags, problem: Problem) -> Launch:
    """FlashInfer's MoeAlltoAll: kernels that write into the other GPUs' memory over NVLink."""
    one_sided.demand_nvlink(flashinfer.comm)
    exchange = one_sided.OneSidedExchange(
        Experts(case.num_experts, problem.ranks.size),
        problem.ranks,
        case.top_k,
        capacity=case.capacity,
        tokens=case.num_tokens,
        row_bytes=row_bytes(case).dispatch,
        columns=case.hidden_size,
        dtype=case.input_dtype.torch,
    )
    return _with_kernels(case, problem, exchange)


@moe_a2a.backend("nccl", requires=(between_gpus, nccl_available))
def nccl(case: MoeCommFlags, problem: Problem) -> Launch:
    """torch.distributed over NCCL, from GPU to GPU; packs rows where that saves more than it takes."""
    group = nccl_group(problem.ranks)
    experts = Experts(case.num_experts, problem.ranks.size)
    packs = worth_packing(experts, case.top_k, case.num_tokens, row_bytes(case).dispatch)
    if packs and not case.real_math:  # experts are planned for a fixed number of rows
        return launch_over(case, problem, packed(case, problem, group))
    return _with_kernels(case, problem, whole(case, problem, group))


@moe_a2a.backend("gloo", requires=(host_memory,), ignores=("nvtx",))
def gloo(case: MoeCommFlags, problem: Problem) -> Launch:
    """torch.distributed over gloo, on the CPU."""
    join_process_group(problem.ranks)
    compute = by_torch(case, float(problem["factor"]), _own(case, problem)) if case.real_math else None
    return launch_over(case, problem, packed(case, problem, None), compute, by="torch")


def _with_kernels(case: MoeCommFlags, problem: Problem, exchange: Exchange) -> Launch:
    """A call over an exchange with a slot for every token of every rank, with this rank's experts if asked for."""
    if not case.real_math:
        return launch_over(case, problem, exchange)
    factor, own = float(problem["factor"]), _own(case, problem)
    compute: library.ByLibrary | ByTriton
    if _by_library(case, problem["weights"].device):
        compute = library.ByLibrary(case, problem, factor, own)
    else:
        compute = ByTriton(case, problem, factor, own, slots=problem.ranks.size * case.num_tokens)
    prepared = replace(problem, tensors={**problem.tensors, **compute.weights})
    return launch_over(case, prepared, exchange, compute, by=compute.name)


def _own(case: MoeCommFlags, problem: Problem) -> range:
    return experts_here(Experts(case.num_experts, problem.ranks.size), problem.ranks.rank)


def packed(case: MoeCommFlags, problem: Problem, group: Any) -> PackedExchange:
    """An exchange of the rows that are needed, over a group of torch.distributed (None: the default one)."""
    experts = Experts(case.num_experts, problem.ranks.size)
    return PackedExchange(group, experts, capacity=case.capacity, **_results(case, problem))


def whole(case: MoeCommFlags, problem: Problem, group: Any) -> WholeExchange:
    """An exchange of all rows, over a group of torch.distributed (None: the default one)."""
    experts = Experts(case.num_experts, problem.ranks.size)
    return WholeExchange(group, experts, problem.ranks, tokens=case.num_tokens, **_results(case, problem))


def _results(case: MoeCommFlags, problem: Problem) -> dict[str, Any]:
    """What experts give back."""
    return {"columns": case.hidden_size, "dtype": case.input_dtype.torch, "device": problem["weights"].device}
