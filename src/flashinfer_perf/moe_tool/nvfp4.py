"""``cutlass_moe_fp4``: NVFP4 weights, and activations in NVFP4 where the card multiplies it, else in 16 bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.moe_tool import contest, eager, vllm
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import ranged
from flashinfer_perf.routines.moe import cutlass_fused_moe as cutlass
from flashinfer_perf.routines.moe.weights import NVFP4
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

NAME = "cutlass_moe_fp4"
VARIANT = "nvfp4"


@contest.contestant
def cutlass_moe_fp4(case: MoeFlags, make: TensorFactory) -> Problem:
    """NVFP4 experts: a scale for 16 weights in e4m3, and one for each expert in fp32."""
    return contest.problem_of(case, make, NVFP4)


@contextlib.contextmanager
def _vllm_state() -> Iterator[None]:
    with ranged(NAME), vllm.configured():
        yield


multiplies_fp4 = capability(minimum="10.0")
quantises = case_rule(
    "activations in NVFP4", lambda case: case.quant_dtype is DType.NVFP4, "it quantises activations to NVFP4"
)
keeps_16_bits = case_rule(
    "activations in 16 bits", lambda case: case.quant_dtype is DType.FLOAT16, "it keeps activations in 16 bits"
)


def variant(case: MoeFlags) -> Any:
    """The flags of ``cutlass_fused_moe`` for this layer in NVFP4; the kernel quantises the activations."""
    return contest.as_routine(case, cutlass_variant=VARIANT)


LIBRARY_LIMITS = tuple(contest.as_in_the_routine(limit, cutlass_variant=VARIANT) for limit in cutlass.LIMITS)


@cutlass_moe_fp4.backend("vllm", requires=(vllm.installed, multiplies_fp4, quantises), state=_vllm_state)
def vllm_cutlass(case: MoeFlags, problem: Problem) -> Launch:
    """W4A4 by vLLM's CUTLASS kernels"""
    return contest.annotated(NAME, vllm.cutlass_moe_fp4(case, problem))


@cutlass_moe_fp4.backend("flashinfer", requires=(multiplies_fp4, quantises, *LIBRARY_LIMITS), state=contest.named(NAME))
def flashinfer(case: MoeFlags, problem: Problem) -> Launch:
    """W4A4 by FlashInfer's CUTLASS kernels"""
    return contest.annotated(NAME, cutlass.library(variant(case), problem))


@cutlass_moe_fp4.backend("triton", requires=(*contest.our_kernels("NVFP4"), keeps_16_bits), state=contest.named(NAME))
def triton(case: MoeFlags, problem: Problem) -> Launch:
    """W4A16 fallback by this project's Triton kernels"""
    return contest.annotated(NAME, contest.by_triton(case, problem, "NVFP4", None))


@cutlass_moe_fp4.backend("torch", requires=(keeps_16_bits,), state=contest.named(NAME))
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """W4A16 fallback in PyTorch"""
    kwargs = {**problem.tensors, "output": contest.room(problem)}
    launch = Launch(eager.experts_nvfp4, kwargs=kwargs, mutates=("output",), host_sync=True)
    return contest.annotated(NAME, launch)
