"""``triton_moe``: FP8 weights and activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.moe_tool import contest, eager, vllm
from flashinfer_perf.moe_tool.channels import FP8_CHANNEL
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import ranged
from flashinfer_perf.routines.moe.weights import FP8_TENSOR
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

NAME = "triton_moe"


@contest.contestant
def triton_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """FP8 experts: a scale for each expert's weights or channel, one for all activations or for each token."""
    return contest.problem_of(case, make, FP8_CHANNEL if case.per_out_ch else FP8_TENSOR)


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


@triton_moe.backend("triton", requires=contest.our_kernels("FP8_CHANNEL"), state=contest.named(NAME))
def triton(case: MoeFlags, problem: Problem) -> Launch:
    """W8A8 by this project's Triton kernels"""
    format = "FP8_CHANNEL" if case.per_out_ch else "FP8_TENSOR"
    return contest.annotated(NAME, contest.by_triton(case, problem, format, case.per_act_token))


@triton_moe.backend("torch", state=contest.named(NAME))
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """W8A8 in PyTorch"""
    kwargs = {**problem.tensors, "output": contest.room(problem), "per_token": case.per_act_token}
    launch = Launch(eager.experts_fp8, kwargs=kwargs, mutates=("output",), host_sync=True)
    return contest.annotated(NAME, launch)
