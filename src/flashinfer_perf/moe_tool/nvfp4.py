"""``cutlass_moe_fp4``: NVFP4 weights, and activations in NVFP4 where the card multiplies it, else in 16 bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import capability, case_rule, package
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool import contest, eager, flashinfer_cutlass, inputs, ours, reference, vllm
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import ranged
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

NAME = "cutlass_moe_fp4"


@contest.contestant
def cutlass_moe_fp4(case: MoeFlags, make: TensorFactory) -> Problem:
    """NVFP4 experts: a scale for 16 weights in e4m3, and one for each expert in fp32."""
    k, n = case.hidden_size, case.intermediate_size
    tensors = {
        **inputs.tokens(case, make),
        **inputs.nvfp4_weight(case, make, "w1", 2 * n, k),
        **inputs.nvfp4_weight(case, make, "w2", k, n),
    }
    return contest.problem_of(case, make, tensors, truth)


def truth(
    *,
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w1_global: torch.Tensor,
    w2_global: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
) -> dict[str, torch.Tensor]:
    first = reference.nvfp4_weights(w1, w1_scale, w1_global)
    second = reference.nvfp4_weights(w2, w2_scale, w2_global)
    return reference.truth(x, topk_ids, topk_weights, first, second)


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
whole_tiles = case_rule(
    "k and n divisible by 128",
    lambda case: case.hidden_size % 128 == 0 and case.intermediate_size % 128 == 0,
    "block scales lie in tiles of 128 rows and 4 blocks of 16, and these must be whole: k and n divisible by 128",
)


@cutlass_moe_fp4.backend("vllm", requires=(vllm.installed, multiplies_fp4, quantises), state=_vllm_state)
def vllm_cutlass(case: MoeFlags, problem: Problem) -> Launch:
    """W4A4 by vLLM's CUTLASS kernels"""
    return contest.annotated(NAME, vllm.cutlass_moe_fp4(case, problem))


@cutlass_moe_fp4.backend(
    "flashinfer",
    requires=(package("flashinfer", extra="flashinfer"), multiplies_fp4, quantises, whole_tiles),
    state=contest.named(NAME),
)
def flashinfer(case: MoeFlags, problem: Problem) -> Launch:
    """W4A4 by FlashInfer's CUTLASS kernels"""
    return contest.annotated(NAME, flashinfer_cutlass.cutlass_fused_moe(problem))


@cutlass_moe_fp4.backend(
    "triton", requires=(triton_installed, capability(minimum="8.0"), keeps_16_bits), state=contest.named(NAME)
)
def triton(case: MoeFlags, problem: Problem) -> Launch:
    """W4A16 fallback by this project's Triton kernels"""
    kwargs = {"x": problem["x"], **contest.routing(problem), "out": contest.room(problem)}
    return contest.annotated(NAME, Launch(ours.nvfp4(case, problem), kwargs=kwargs, mutates=("out",)))


@cutlass_moe_fp4.backend("torch", requires=(keeps_16_bits,), state=contest.named(NAME))
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """W4A16 fallback in PyTorch"""
    kwargs = {**problem.tensors, "out": contest.room(problem)}
    launch = Launch(eager.experts_nvfp4, kwargs=kwargs, mutates=("out",), host_sync=True)
    return contest.annotated(NAME, launch)
