"""The sum of a tensor over ranks, alone or with what follows it in a layer: out = RMSNorm(sum + residual) * weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.requirement import capability, host_memory, package
from flashinfer_perf.core.routine import Fact, routine
from flashinfer_perf.core.work import UNCOUNTED, Work
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.allreduce_comm.flags import WITH_NORM, AllReduceFlags
from flashinfer_perf.routines.allreduce_comm.library import fused_all_reduce, workspaces_destroyed
from flashinfer_perf.routines.moe_comm.backends import between_gpus, nccl_available
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown
from flashinfer_perf.run.process_group import join_process_group, nccl_group

WEIGHT_SPREAD = 0.1
"""Standard deviation of norm weights about one."""
ROUNDINGS = 2
"""Beside one for each rank's addend: of the residual's sum, and of the normalised row."""

NOTHING = "The sum of one rank starts no kernel that could be recorded: CUDA events are used."

flashinfer_installed = package("flashinfer", extra="flashinfer")
ON_NVLINK = (capability(9, 10, 12), flashinfer_installed)


@routine(
    "allreduce_fusion",
    flags=AllReduceFlags,
    uses=("num_tokens", "hidden_size", "input_dtype", "pattern", "eps", "validate", "enable_pdl"),
    facts=(Fact("tp_ranks", "ranks that are summed over"),),
    several_ranks=True,
)
def all_reduce(case: AllReduceFlags, make: TensorFactory) -> Problem:
    """All-reduce, plain or with residual and RMSNorm; start it with mpirun or torchrun. TB/s is bus bandwidth."""
    shape, dtype, ranks = (case.num_tokens, case.hidden_size), case.input_dtype, make.ranks
    tensors = {"input": make.normal("input", shape, dtype)}
    if case.pattern == WITH_NORM:
        tensors["residual"] = make.normal("residual", shape, dtype, rank=0)
        tensors["weight"] = make.normal("weight", shape[1:], dtype, rank=0).mul_(WEIGHT_SPREAD).add_(1)

    def truth(**given: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Of the inputs that every rank draws, which each can draw for itself."""
        inputs = (make.normal("input", shape, dtype, rank=rank).double() for rank in range(ranks.size))
        total = sum(inputs, torch.zeros((), dtype=torch.float64))
        return _normalised(total, eps=case.eps, **given) if case.pattern == WITH_NORM else {"output": total}

    sent = case.num_tokens * case.hidden_size * dtype.bytes * 2 * (ranks.size - 1) / ranks.size
    check = tolerance.for_sum_of_ranks(dtype, ranks.size + ROUNDINGS)
    outputs = ("residual_out", "norm_out") if case.pattern == WITH_NORM else ("output",)
    return Problem(
        tensors=tensors,
        reference=truth,
        work=Work(UNCOUNTED, bytes=sent),
        checks=dict.fromkeys(outputs, check),
        ranks=ranks,
        facts={"tp_ranks": ranks.size},
        validated=case.validate,
        shown=(Shown("input.shape", tensors["input"].shape),),
    )


def _normalised(
    total: torch.Tensor, *, residual: torch.Tensor, weight: torch.Tensor, eps: float, **_: Any
) -> Mapping[str, torch.Tensor]:
    """fp64: what is handed on as residual, and its rows divided by their root mean square, times the weight."""
    carried = total + residual.double()
    rms = (carried.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return {"residual_out": carried, "norm_out": carried / rms * weight.double()}


@all_reduce.backend("trtllm_oneshot", requires=ON_NVLINK, state=workspaces_destroyed)
def oneshot(case: AllReduceFlags, problem: Problem) -> Launch:
    """FlashInfer's fused kernel over NVLink, every rank reading all others' inputs."""
    return fused_all_reduce(flashinfer.comm, case, problem, oneshot=True)


@all_reduce.backend("trtllm_twoshot", requires=ON_NVLINK, state=workspaces_destroyed)
def twoshot(case: AllReduceFlags, problem: Problem) -> Launch:
    """FlashInfer's fused kernel over NVLink: each rank reduces a share, then all are gathered."""
    return fused_all_reduce(flashinfer.comm, case, problem, oneshot=False)


@all_reduce.backend("nccl", requires=(between_gpus, nccl_available), ignores=("enable_pdl",))
def nccl(case: AllReduceFlags, problem: Problem) -> Launch:
    """torch.distributed over NCCL, in place; residual and norm by PyTorch after it."""
    return in_place(case, problem, nccl_group(problem.ranks))


@all_reduce.backend("gloo", requires=(host_memory,), ignores=("enable_pdl",))
def gloo(case: AllReduceFlags, problem: Problem) -> Launch:
    """torch.distributed over gloo, on the CPU, in place; residual and norm by PyTorch after it."""
    join_process_group(problem.ranks)
    return in_place(case, problem, None)


def in_place(case: AllReduceFlags, problem: Problem, group: Any) -> Launch:
    """Over a group of torch.distributed (None: the default one)."""
    if case.pattern != WITH_NORM:
        kwargs = {"output": problem["input"], "group": group}
        nothing = NOTHING if problem.ranks.size == 1 else ""
        return Launch(reduced, kwargs=kwargs, mutates=("output",), no_graph=nothing, no_cupti=nothing)
    kwargs = {"residual_out": problem["input"], "residual": problem["residual"], "weight": problem["weight"]}
    return Launch(
        reduced_and_normalised,
        kwargs={**kwargs, "group": group, "eps": case.eps},
        mutates=("residual_out",),
        returns=("norm_out",),
    )


def reduced(output: torch.Tensor, group: Any) -> None:
    """The sum over ranks, in place."""
    torch.distributed.all_reduce(output, group=group)


def reduced_and_normalised(
    residual_out: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, group: Any, eps: float
) -> torch.Tensor:
    """The sum over ranks and of the residual, in place; gives its RMSNorm."""
    torch.distributed.all_reduce(residual_out, group=group)
    residual_out.add_(residual)
    return torch.nn.functional.rms_norm(residual_out, weight.shape, weight, eps)
