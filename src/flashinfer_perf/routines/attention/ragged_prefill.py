"""Prefill attention over keys and values that lie sequence by sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.attention import eager
from flashinfer_perf.routines.attention.backends import (
    ALL_E4M3,
    SAME_16,
    dims,
    empty_output,
    flashinfer_installed,
    float_scales,
    formats,
    head_dims,
    planned,
    workspace,
)
from flashinfer_perf.routines.attention.eager import torch_formats
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.inputs import (
    FACTS,
    RENAMED,
    attention_problem,
    length_lines,
    pairs_in_a_row,
    seen_queries,
    whole_groups,
)
from flashinfer_perf.routines.attention.operands import scales_of, softmax_scale
from flashinfer_perf.routines.attention.prefill_calls import (
    auto_limits,
    cudnn_plan_options,
    cudnn_prefill_call,
    cudnn_prefill_limits,
    fa2_limits,
    fa3_limits,
    plan_options,
    planned_run,
    tensor_scales,
)
from flashinfer_perf.routines.attention.sequences import offsets, prefilling
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "BatchPrefillWithRaggedKVCacheWrapper",
    flags=AttentionFlags,
    uses=(
        "batch_size",
        "s_qo",
        "s_kv",
        "num_qo_heads",
        "num_kv_heads",
        narrowed("head_dim_qk", default=REQUIRED),
        "head_dim_vo",
        "q_dtype",
        "kv_dtype",
        "causal",
        "random_actual_seq_len",
        "enable_pdl",
    ),
    facts=FACTS,
    rules=(whole_groups, seen_queries),
    renamed=RENAMED,
)
def ragged_prefill(case: AttentionFlags, make: TensorFactory) -> Problem:
    """Prefill attention with ragged KV cache; a causal mask is aligned to the end of each sequence."""
    sequences, scales, (dim_qk, dim_vo) = prefilling(case, make), scales_of(case), dims(case)
    q_tokens, kv_tokens, kv_heads = sequences.q_tokens, sequences.kv_tokens, case.num_kv_heads
    tensors = {
        "q": make.normal("q", (q_tokens, case.num_qo_heads, dim_qk), case.q_dtype, scales.q),
        "k": make.normal("k", (kv_tokens, kv_heads, dim_qk), case.kv_dtype, scales.k),
        "v": make.normal("v", (kv_tokens, kv_heads, dim_vo), case.kv_dtype, scales.v),
        "qo_indptr": offsets(sequences.q_lens).to(make.device),
        "kv_indptr": offsets(sequences.kv_lens).to(make.device),
        "q_len": sequences.q_lens.to(make.device),
        "kv_len": sequences.kv_lens.to(make.device),
    }
    problem = attention_problem(case, make, sequences, case.causal, tensors, pairs_in_a_row)
    names = ("q", "k", "v", "qo_indptr", "kv_indptr")
    shown = (
        *length_lines(case, sequences),
        *(Shown(f"{name}.shape", tensors[name].shape) for name in names),
        Shown("scale", softmax_scale(case)),
    )
    facts = {**problem.facts, "avg_actual_seq_len": sequences.average_q}
    return dataclasses.replace(problem, shown=shown, facts=facts)


def _wrapper(case: AttentionFlags, problem: Problem, backend: str, **cudnn: Any) -> Any:
    """FlashInfer's wrapper, planned, and how long that took."""
    wrapper = flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper(
        workspace(problem["q"].device), "NHD", backend=backend
    )
    facts = planned(
        wrapper.plan,
        qo_indptr=problem["qo_indptr"],
        kv_indptr=problem["kv_indptr"],
        **plan_options(case),
        **cudnn,
    )
    return wrapper, facts


def _operands(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: problem[name] for name in ("q", "k", "v")}


def _run(case: AttentionFlags, problem: Problem, backend: str) -> Launch:
    wrapper, facts = _wrapper(case, problem, backend)
    return planned_run(case, problem, backend, wrapper, facts, _operands(problem))


@ragged_prefill.backend(
    "fa2",
    requires=fa2_limits,
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2."""
    return _run(case, problem, "fa2")


@ragged_prefill.backend(
    "fa3",
    requires=(*fa3_limits, head_dims(64, 128, 256, (192, 128))),
    ignores=("enable_pdl",),
    documented="9.0",
)
def fa3(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-3, on Hopper."""
    return _run(case, problem, "fa3")


@ragged_prefill.backend(
    "auto",
    requires=(*auto_limits, head_dims(64, 128, 256, 512, (192, 128))),
)
def auto(case: AttentionFlags, problem: Problem) -> Launch:
    """Whichever of its backends FlashInfer chooses."""
    return _run(case, problem, "auto")


@ragged_prefill.backend(
    "cudnn",
    requires=cudnn_prefill_limits,
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def cudnn(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN through FlashInfer's wrapper."""
    wrapper, facts = _wrapper(case, problem, "cudnn", **cudnn_plan_options(case, problem))
    out = {"out": empty_output(case, problem)}
    kwargs = {**_operands(problem), **tensor_scales(case, problem), **out}
    return Launch(wrapper.run, kwargs=kwargs, mutates=("out",), facts=facts)


@ragged_prefill.backend(
    "cudnn-native",
    requires=cudnn_prefill_limits,
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def cudnn_native(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN, called directly."""
    kv_tokens, heads = problem["kv_indptr"].long(), case.num_kv_heads
    dim_qk, dim_vo = dims(case)
    offsets_of_caches = {
        "batch_offsets_k": kv_tokens * (heads * dim_qk),
        "batch_offsets_v": kv_tokens * (heads * dim_vo),
    }
    return cudnn_prefill_call(case, problem, {"k_cache": problem["k"], "v_cache": problem["v"], **offsets_of_caches})


CUTLASS_WORK_ITEMS = 131072
"""Of 256 queries of a head each; the library's buffers hold so many and nothing checks it."""


@ragged_prefill.backend(
    "cutlass",
    requires=(
        capability(10, 11),
        flashinfer_installed,
        formats(*SAME_16, *ALL_E4M3),
        head_dims(64, 128, (192, 128)),
        case_rule(
            f"batch_size * ceil(s_qo / 256) * num_qo_heads up to {CUTLASS_WORK_ITEMS}",
            lambda case: case.batch_size * -(-case.s_qo // 256) * case.num_qo_heads <= CUTLASS_WORK_ITEMS,
        ),
    ),
    ignores=("enable_pdl",),
    documented="10.0 10.3",
)
def cutlass(case: AttentionFlags, problem: Problem) -> Launch:
    """CUTLASS, on Blackwell."""
    wrapper, facts = _wrapper(case, problem, "cutlass")
    out = {"out": empty_output(case, problem)}
    kwargs = {**_operands(problem), **float_scales(case), **out}
    return Launch(wrapper.run, kwargs=kwargs, mutates=("out",), facts=facts)


@ragged_prefill.backend(
    "trtllm-native",
    requires=(
        capability(10),
        flashinfer_installed,
        formats(*SAME_16, *ALL_E4M3),
        head_dims(128, 256, (192, 128)),
    ),
    documented="10.0 10.3",
)
def trtllm_native(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, called directly, on Blackwell."""
    scales, query = scales_of(case), problem["q"]
    return Launch(
        flashinfer.prefill.trtllm_ragged_attention_deepseek,
        kwargs={
            "query": query,
            "key": problem["k"],
            "value": problem["v"],
            "workspace_buffer": workspace(query.device),
            "seq_lens": problem["kv_len"],
            "max_q_len": case.s_qo,
            "max_kv_len": case.s_kv,
            "bmm1_scale": softmax_scale(case) * scales.q * scales.k,
            "bmm2_scale": scales.v,
            "o_sf_scale": 1.0,
            "batch_size": case.batch_size,
            "window_left": -1,
            "cum_seq_lens_q": problem["qo_indptr"],
            "cum_seq_lens_kv": problem["kv_indptr"],
            "enable_pdl": case.enable_pdl,
            "is_causal": case.causal,
            "return_lse": False,
            "out": empty_output(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )


@ragged_prefill.backend("torch", requires=(torch_formats,), ignores=("enable_pdl",))
def torch_sdpa(case: AttentionFlags, problem: Problem) -> Launch:
    """PyTorch's own attention, sequence by sequence."""
    return eager.ragged(case, problem)
