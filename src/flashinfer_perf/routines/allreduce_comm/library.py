"""FlashInfer's fused all-reduce: its workspace, and its call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.allreduce_comm.flags import WITH_NORM, AllReduceFlags
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.process_group import join_process_group
from flashinfer_perf.run.ranks import place_on_host

PLAIN, RESIDUAL_RMS_NORM = 0, 1
"""The library's AllReduceFusionPattern.kAllReduce and kARResidualRMSNorm."""

_workspaces: list[Any] = []


@contextlib.contextmanager
def workspaces_destroyed() -> Iterator[None]:
    """The library wants to be told when a workspace is no longer needed, and warns otherwise."""
    try:
        yield
    finally:
        while _workspaces:
            _workspaces.pop().destroy()


def fused_all_reduce(comm: Any, case: AllReduceFlags, problem: Problem, *, oneshot: bool) -> Launch:
    """The library's kernel, in memory shared over NVLink without multicast.

    Args:
        comm: the module flashinfer.comm.
        oneshot: every rank reads all others' inputs, rather than reducing a share and gathering the rest.
    """
    if problem.ranks.size == 1:
        raise Unsupported("it needs several ranks; start it with mpirun -np 2, or torchrun")
    if not oneshot and case.num_tokens <= problem.ranks.size:
        raise Unsupported(
            f"two shots need more tokens ({case.num_tokens}) than ranks ({problem.ranks.size}); "
            "use --backends trtllm_oneshot"
        )
    workspace = _workspace(comm, case, problem)
    x = problem["input"]
    kwargs: dict[str, Any] = {
        "input": x,
        "workspace": workspace,
        "launch_with_pdl": case.enable_pdl,
        "use_oneshot": oneshot,
        "fp32_acc": True,
    }
    if case.pattern != WITH_NORM:
        kwargs |= {"pattern": PLAIN, "output": torch.empty_like(x)}
        return Launch(comm.allreduce_fusion, kwargs=kwargs, mutates=("output",))
    kwargs |= {
        "pattern": RESIDUAL_RMS_NORM,
        "residual_in": problem["residual"],
        "residual_out": torch.empty_like(x),
        "norm_out": torch.empty_like(x),
        "rms_gamma": problem["weight"],
        "rms_eps": case.eps,
    }
    return Launch(comm.allreduce_fusion, kwargs=kwargs, mutates=("residual_out", "norm_out"))


def _workspace(comm: Any, case: AllReduceFlags, problem: Problem) -> Any:
    ranks = problem.ranks
    join_process_group(ranks)
    from flashinfer.comm.comm_backend import TorchDistBackend

    workspace = comm.create_allreduce_fusion_workspace(
        backend="trtllm",  # the others need NVLink multicast
        world_size=ranks.size,
        rank=ranks.rank,
        max_token_num=case.num_tokens,
        hidden_dim=case.hidden_size,
        dtype=case.input_dtype.torch,
        gpus_per_node=place_on_host(ranks)[1],
        comm_backend=TorchDistBackend(),
        force_oneshot_support=True,
    )
    _workspaces.append(workspace)
    return workspace
