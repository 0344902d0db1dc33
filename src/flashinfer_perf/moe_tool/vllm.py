"""vLLM's kernels as contestants. Its experts give gate first and up second; ours are the other way round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, is_installed
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.layout import exchanged, swizzled
from flashinfer_perf.routines.moe import hidden
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


def _unmet(machine: Machine, flags: Any) -> str | None:
    return None if is_installed("vllm") else "vllm is not installed; install it with: pip install vllm"


installed = Requirement("vllm installed", _unmet, on_package=True)


@contextlib.contextmanager
def configured() -> Iterator[None]:
    """vLLM looks for the configuration of an engine around every call; this one is that of a single process."""
    from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig(parallel_config=ParallelConfig(pipeline_parallel_size=1))):
        yield


def fused_experts(case: MoeFlags, problem: Problem) -> Launch:
    """Its Triton kernel on FP8 weights; it quantises the activations itself, with scales that it finds in the call."""
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts as kernel

    scale = problem["w1_scale"]
    config = fp8_w8a8_moe_quant_config(
        w1_scale=exchanged(scale)[..., None] if case.per_out_ch else scale,
        w2_scale=problem["w2_scale"][..., None] if case.per_out_ch else problem["w2_scale"],
        per_act_token_quant=case.per_act_token,
        per_out_ch_quant=case.per_out_ch,
    )
    kwargs = {
        "hidden_states": problem["x"],
        "w1": exchanged(problem["w1"]),
        "w2": problem["w2"],
        "topk_weights": problem["weights"],
        "topk_ids": problem["experts"],
        "quant_config": config,
    }
    return Launch(kernel, kwargs=kwargs, returns=("output",), scratch=("quant_config",))


def cutlass_moe_fp4(case: MoeFlags, problem: Problem) -> Launch:
    """Its CUTLASS kernels on NVFP4 weights; activations are quantised in the call, with global scales
    that the routines of the MoE family have, too."""
    from vllm.model_executor.layers.fused_moe.config import nvfp4_moe_quant_config
    from vllm.model_executor.layers.fused_moe.cutlass_moe import cutlass_moe_fp4 as kernel

    first = torch.full_like(problem["w1_global"], hidden.GLOBAL_SCALE)
    second = torch.full_like(first, hidden.BETWEEN_FP4)
    config = nvfp4_moe_quant_config(
        a1_gscale=first,
        a2_gscale=second,
        w1_scale=swizzled(exchanged(problem["w1_scale"])),
        w2_scale=swizzled(problem["w2_scale"]),
        g1_alphas=1 / (first * problem["w1_global"]),
        g2_alphas=1 / (second * problem["w2_global"]),
    )
    kwargs = {
        "a": problem["x"],
        "w1_fp4": exchanged(problem["w1"]),
        "w2_fp4": problem["w2"],
        "topk_weights": problem["weights"],
        "topk_ids": problem["experts"],
        "m": case.num_tokens,
        "n": case.intermediate_size,
        "k": case.hidden_size,
        "e": case.num_experts,
        "quant_config": config,
    }
    return Launch(kernel, kwargs=kwargs, returns=("output",), scratch=("quant_config",))
