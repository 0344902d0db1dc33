"""What the backends of attention share: needs with their reasons, and how FlashInfer's wrappers are planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, case_rule, package
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import scales_of
from flashinfer_perf.run.problem import Problem

WORKSPACE_BYTES = 128 << 20
"""What the library recommends."""
SIXTEEN_BITS = (DType.BFLOAT16, DType.FLOAT16)
FP8 = (DType.FP8_E4M3, DType.FP8_E5M2)

flashinfer_installed = package("flashinfer", extra="flashinfer")
cudnn_installed = package("cudnn", extra="flashinfer")


def workspace(device: torch.device) -> torch.Tensor:
    """Zeroed: some kernels keep semaphores in it."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def empty_output(case: AttentionFlags, problem: Problem) -> torch.Tensor:
    """(tokens, heads, head_dim_vo)."""
    q = problem["q"]
    return torch.empty(*q.shape[:2], dims(case)[1], dtype=case.out_dtype.torch, device=q.device)


def planned(plan: Callable[..., Any], **arguments: Any) -> Mapping[str, float]:
    """Plans outside of what is timed; how long that took is a fact."""
    began = perf_counter()
    plan(**arguments)
    return {"plan_ms": (perf_counter() - began) * 1e3}


def float_scales(case: AttentionFlags) -> dict[str, float]:
    """Arguments of a wrapper's run for the operands that are FP8; the others have none."""
    scales = scales_of(case)
    found = {"q_scale": scales.q} if case.q_dtype in FP8 else {}
    return found | ({"k_scale": scales.k, "v_scale": scales.v} if case.kv_dtype in FP8 else {})


def group_size(case: AttentionFlags) -> int:
    """Query heads that share a key-value head."""
    return case.num_qo_heads // case.num_kv_heads


def dims(case: AttentionFlags) -> tuple[int, int]:
    """Of query and key, and of value and output."""
    assert case.head_dim_qk is not None, "the routine demands it"
    assert case.head_dim_vo is not None, "it is head_dim_qk by default"
    return case.head_dim_qk, case.head_dim_vo


def head_dims(*allowed: int | tuple[int, int]) -> Requirement:
    """Of query and key, and of value and output: one number where they are the same."""
    pairs = [(dim, dim) if isinstance(dim, int) else dim for dim in allowed]
    text = ", ".join(str(qk) if qk == vo else f"{qk} with {vo}" for qk, vo in pairs)
    return case_rule(f"head_dim_qk and head_dim_vo of {text}", lambda case: dims(case) in pairs)


def formats(*allowed: tuple[DType, DType]) -> Requirement:
    """Of query and key-value cache."""
    text = ", ".join(q.value if q is kv else f"{q} with {kv}" for q, kv in allowed)
    return case_rule(f"q_dtype and kv_dtype of {text}", lambda case: (case.q_dtype, case.kv_dtype) in allowed)


equal_dims = case_rule("head_dim_vo the same as head_dim_qk", lambda case: case.head_dim_qk == case.head_dim_vo)
page_of_a_power_of_two = case_rule("page_size a power of two", lambda case: case.page_size & (case.page_size - 1) == 0)
fp8_wide_heads = case_rule(
    "head_dim_qk of 128 or 256 for FP8", lambda case: case.kv_dtype not in FP8 or case.head_dim_qk in (128, 256)
)


def _fp8_queries_on_hopper(machine: Machine, flags: Any) -> str | None:
    if flags is None or flags.q_dtype not in FP8 or (machine.compute_capability or (9, 0))[0] == 9:
        return None
    return "for FP8 queries it needs compute capability 9.x: it would choose FlashAttention-2, which has none"


fp8_queries_on_hopper = Requirement("compute capability 9.x for FP8 queries", _fp8_queries_on_hopper)


def _ampere_for_bfloat16(machine: Machine, flags: Any) -> str | None:
    if flags is None or DType.BFLOAT16 not in (flags.q_dtype, flags.kv_dtype):
        return None
    old = machine.compute_capability is not None and machine.compute_capability < (8, 0)
    return "for bfloat16 it needs compute capability 8.0 or newer" if old else None


needs_ampere_for_bfloat16 = Requirement("compute capability 8.0 or newer for bfloat16", _ampere_for_bfloat16)
SAME_16 = tuple((dtype, dtype) for dtype in SIXTEEN_BITS)
FP8_CACHE = tuple((dtype, fp8) for dtype in SIXTEEN_BITS for fp8 in FP8)
E4M3_CACHE = tuple((dtype, DType.FP8_E4M3) for dtype in SIXTEEN_BITS)
ALL_E4M3 = ((DType.FP8_E4M3, DType.FP8_E4M3),)
