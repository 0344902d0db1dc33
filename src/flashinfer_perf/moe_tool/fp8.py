"""``triton_moe``: FP8 weights and activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool import contest, eager, inputs, ours, reference, vllm
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import ranged
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

NAME = "triton_moe"


@contest.contestant
def triton_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """FP8 experts: a scale for each expert's weights or channel, one for all activations or for each token."""
    k, n = case.hidden_size, case.intermediate_size
    tensors = {
        **inputs.tokens(case, make),
        **inputs.fp8_weight(case, make, "w1", 2 * n, k),
        **inputs.fp8_weight(case, make, "w2", k, n),
    }
    return contest.problem_of(case, make, tensors, truth)


def truth(
    *,
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
) -> dict[str, torch.Tensor]:
    first, second = reference.fp8_weights(w1, w1_scale), reference.fp8_weights(w2, w2_scale)
    return reference.truth(x, topk_ids, topk_weights, first, second)


@contextlib.contextmanager
def _vllm_state() -> Iterator[None]:
    with ranged(NAME), vllm.configured():
        yield


both_or_neither = case_rule(
    "per_act_token and per_out_ch alike",
    lambda case: case.per_act_token == case.per_out_ch,
    "its kernel takes scales per token and per channel together or not at all",
)


@triton_moe.backend("vllm", requires=(vllm.installed, capability(minimum="8.9"), both_or_neither), state=_vllm_state)
def vllm_triton(case: MoeFlags, problem: Problem) -> Launch:
    """W8A8 by vLLM's Triton kernels"""
    return contest.annotated(NAME, vllm.fused_experts(case, problem))


@triton_moe.backend("triton", requires=(triton_installed, capability(minimum="8.9")), state=contest.named(NAME))
def triton(case: MoeFlags, problem: Problem) -> Launch:
    """W8A8 by this project's Triton kernels"""
    kwargs = {"x": problem["x"], **contest.routing(problem), "out": contest.room(problem)}
    return contest.annotated(NAME, Launch(ours.fp8(case, problem), kwargs=kwargs, mutates=("out",)))


@triton_moe.backend("torch", state=contest.named(NAME))
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """W8A8 in PyTorch"""
    kwargs = {**problem.tensors, "out": contest.room(problem), "per_token": case.per_act_token}
    launch = Launch(eager.experts_fp8, kwargs=kwargs, mutates=("out",), host_sync=True)
    return contest.annotated(NAME, launch)
