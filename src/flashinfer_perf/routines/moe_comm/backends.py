"""What the backends need, each with its reason."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, case_rule, package
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.one_sided import ROW_COLUMNS, TOP_KS

flashinfer_installed = package("flashinfer", extra="flashinfer")


def _unmet_gpus(machine: Machine, flags: Any) -> str | None:
    return None if machine.is_cuda else f"it sends from GPU to GPU, and this run is on {machine.device!r}"


def _unmet_nccl(machine: Machine, flags: Any) -> str | None:
    return None if torch.distributed.is_nccl_available() else "this build of PyTorch has no NCCL"


between_gpus = Requirement("a CUDA GPU", _unmet_gpus)
nccl_available = Requirement("PyTorch with NCCL", _unmet_nccl, on_package=True)

combined_top_k = case_rule(
    f"top_k of {', '.join(map(str, TOP_KS))}",
    lambda case: case.top_k in TOP_KS,
    f"the library combines only top_k of {', '.join(map(str, TOP_KS))}",
)
whole_words = case_rule(
    f"hidden_size divisible by {ROW_COLUMNS}",
    lambda case: case.hidden_size % ROW_COLUMNS == 0,
    f"the library moves rows of whole words: hidden_size must be divisible by {ROW_COLUMNS}",
)
