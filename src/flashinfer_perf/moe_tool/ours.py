"""This project's Triton kernels as contestants."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.run.problem import Problem


def planned(case: MoeFlags, problem: Problem, **weights: Any) -> Any:
    """The kernels' plan for a problem; ``weights`` are the formats' own: ``format``, and global scales."""
    from flashinfer_perf.kernels.moe.experts import TritonExperts
    from flashinfer_perf.kernels.moe.weights import ExpertWeights

    held = ExpertWeights(
        w1=problem["w1"], w2=problem["w2"], w1_scale=problem["w1_scale"], w2_scale=problem["w2_scale"], **weights
    )
    per_token = None if "w1_global" in weights else case.per_act_token
    return TritonExperts(
        held,
        num_tokens=case.num_tokens,
        top_k=case.top_k,
        num_experts=case.num_experts,
        dtype=torch.float16,
        per_token=per_token,
    )


def fp8(case: MoeFlags, problem: Problem) -> Any:
    """With a scale for each expert's weights, or for each of their channels."""
    from flashinfer_perf.kernels.moe.weights import ExpertFormat

    return planned(case, problem, format=ExpertFormat.FP8_CHANNEL if case.per_out_ch else ExpertFormat.FP8_TENSOR)


def nvfp4(case: MoeFlags, problem: Problem) -> Any:
    """Weights are decoded on the way to the product; activations stay in 16 bits."""
    from flashinfer_perf.kernels.moe.weights import ExpertFormat

    overall = {"w1_global": problem["w1_global"], "w2_global": problem["w2_global"]}
    return planned(case, problem, format=ExpertFormat.NVFP4, **overall)
