"""What both prefills share: limits, how wrappers are planned and called, and how scales are passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashinfer_perf.core.requirement import capability, on_generations
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.attention.backends import (
    ALL_E4M3,
    FP8,
    FP8_CACHE,
    SAME_16,
    cudnn_installed,
    dims,
    empty_output,
    flashinfer_installed,
    float_scales,
    formats,
    fp8_queries_on_hopper,
    fp8_wide_heads,
    head_dims,
    page_of_a_power_of_two,
    workspace,
)
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import scales_of, softmax_scale
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

fa2_limits = (
    capability(minimum="8.0"),
    flashinfer_installed,
    formats(*SAME_16, *FP8_CACHE),
    head_dims(64, 128, 256, 512, (192, 128)),
    fp8_wide_heads,
)
fa3_limits = (capability(9), flashinfer_installed, formats(*SAME_16, *ALL_E4M3), fp8_wide_heads)
auto_limits = (
    capability(minimum="8.0"),
    flashinfer_installed,
    formats(*SAME_16, *FP8_CACHE, *ALL_E4M3),
    fp8_wide_heads,
    fp8_queries_on_hopper,
)
"""Of FlashAttention-3 and of FlashInfer's choice but for head dims, which depend on how keys and values lie."""
cudnn_prefill_limits = (
    capability(minimum="8.0"),
    flashinfer_installed,
    cudnn_installed,
    formats(*SAME_16, *ALL_E4M3),
    on_generations((8, 9), formats(*SAME_16)),
    head_dims(64, 128, 256, (192, 128)),
)
"""Before compute capability 10 cuDNN has no FP8 attention that is causal or has an output of 16 bits."""
trtllm_paged_limits = (
    capability(10),
    flashinfer_installed,
    formats(*SAME_16, *ALL_E4M3),
    head_dims(128, 256),
    page_of_a_power_of_two,
)


def plan_options(case: AttentionFlags) -> dict[str, Any]:
    """What both wrappers are told of the heads, the mask and the formats."""
    return {
        "num_qo_heads": case.num_qo_heads,
        "num_kv_heads": case.num_kv_heads,
        "head_dim_qk": case.head_dim_qk,
        "head_dim_vo": case.head_dim_vo,
        "causal": case.causal,
        "sm_scale": softmax_scale(case),
        "q_data_type": case.q_dtype.torch,
        "kv_data_type": case.kv_dtype.torch,
        "o_data_type": case.out_dtype.torch,
    }


def planned_run(
    case: AttentionFlags,
    problem: Problem,
    backend: str,
    wrapper: Any,
    facts: Mapping[str, float],
    operands: Mapping[str, Any],
) -> Launch:
    """A planned wrapper's run, which is what is timed, as in a serving engine."""
    call, scales = run_of(case, wrapper.run, backend, tuple(operands))
    return Launch(
        call,
        kwargs={**operands, **scales, "out": empty_output(case, problem), "enable_pdl": case.enable_pdl},
        mutates=("out",),
        facts=facts,
        resolved_backend=wrapper._backend if backend == "auto" else "",
    )


def run_of(
    case: AttentionFlags, run: Callable[..., Any], backend: str, operands: Sequence[str]
) -> tuple[Callable[..., Any], Mapping[str, float]]:
    """What to call in place of a wrapper's run, and the scales to pass by keyword.

    FlashAttention-3 takes the scales of FP8 queries, keys and values by position, behind these operands, and applies
    them in its kernel; by keyword they would cost a kernel more, or not be applied at all.
    """
    if case.q_dtype not in FP8 or backend not in ("fa3", "auto"):
        return run, float_scales(case)
    scales = scales_of(case)

    def with_scales(**arguments: Any) -> Any:
        leading = [arguments.pop(name) for name in operands]
        return run(*leading, scales.q, scales.k, scales.v, **arguments)

    return with_scales, {}


def tensor_scales(case: AttentionFlags, problem: Problem) -> dict[str, torch.Tensor]:
    """The scales of FP8 operands as cuDNN wants them, in the device's memory; of others there are none."""
    device = problem["q"].device
    found = float_scales(case)
    return {name: torch.tensor([value], dtype=torch.float32, device=device) for name, value in found.items()}


def cudnn_plan_options(case: AttentionFlags, problem: Problem) -> dict[str, Any]:
    """What cuDNN would otherwise find out from the page table or the offsets, at the price of further work."""
    return {
        "seq_lens": problem["kv_len"],
        "seq_lens_q": problem["q_len"],
        "max_token_per_sequence": case.s_qo,
        "max_sequence_kv": case.s_kv,
    }


def cudnn_prefill_call(case: AttentionFlags, problem: Problem, caches: Mapping[str, torch.Tensor]) -> Launch:
    """cuDNN's prefill. Offsets are in elements, which it needs no kernels to convert."""
    q_tokens, heads = problem["qo_indptr"].long(), case.num_qo_heads
    dim_qk, dim_vo = dims(case)
    return Launch(
        flashinfer.prefill.cudnn_batch_prefill_with_kv_cache,
        kwargs={
            "q": problem["q"],
            **caches,
            "scale": softmax_scale(case),
            "workspace_buffer": workspace(problem["q"].device),
            "max_token_per_sequence": case.s_qo,
            "max_sequence_kv": case.s_kv,
            "actual_seq_lens_q": problem["q_len"].view(-1, 1, 1, 1),
            "actual_seq_lens_kv": problem["kv_len"].view(-1, 1, 1, 1),
            "causal": case.causal,
            "return_lse": False,
            **tensor_scales(case, problem),
            "batch_offsets_q": q_tokens * (heads * dim_qk),
            "batch_offsets_o": q_tokens * (heads * dim_vo),
            "batch_offsets_units": "elements",
            "is_cuda_graph_compatible": True,
            "o_data_type": case.out_dtype.torch,
            "out": empty_output(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )
