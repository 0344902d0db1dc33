"""Prefill attention over a paged KV cache."""

from __future__ import annotations

import dataclasses
from typing import Any

from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.attention import eager
from flashinfer_perf.routines.attention.backends import (
    empty_output,
    head_dims,
    planned,
    workspace,
)
from flashinfer_perf.routines.attention.eager import torch_formats
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.inputs import (
    FACTS,
    RENAMED,
    index_lines,
    length_lines,
    paged_problem,
    pool_lines,
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
    trtllm_paged_limits,
)
from flashinfer_perf.routines.attention.sequences import prefilling
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "BatchPrefillWithPagedKVCacheWrapper",
    flags=AttentionFlags,
    uses=(
        narrowed("page_size", default=REQUIRED, minimum=1),
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
def paged_prefill(case: AttentionFlags, make: TensorFactory) -> Problem:
    """Prefill attention with paged KV cache; a causal mask is aligned to the end of each sequence."""
    sequences = prefilling(case, make)
    problem = paged_problem(case, make, sequences, case.causal)
    shown = (
        *length_lines(case, sequences),
        *pool_lines(case, problem),
        Shown("qo_indptr.shape", problem["qo_indptr"].shape),
        Shown("qo_indptr.dtype", problem["qo_indptr"].dtype),
        *index_lines(case, problem),
    )
    facts = {**problem.facts, "avg_actual_seq_len": sequences.average_q}
    return dataclasses.replace(problem, shown=shown, facts=facts)


def _wrapper(case: AttentionFlags, problem: Problem, backend: str, **cudnn: Any) -> Any:
    """FlashInfer's wrapper, planned, and how long that took."""
    wrapper = flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper(
        workspace(problem["q"].device), "HND", backend=backend
    )
    facts = planned(
        wrapper.plan,
        qo_indptr=problem["qo_indptr"],
        paged_kv_indptr=problem["kv_indptr"],
        paged_kv_indices=problem["kv_indices"],
        paged_kv_last_page_len=problem["kv_last_page_len"],
        page_size=case.page_size,
        **plan_options(case),
        **cudnn,
    )
    return wrapper, facts


def _operands(problem: Problem) -> dict[str, Any]:
    return {"q": problem["q"], "paged_kv_cache": (problem["k_cache"], problem["v_cache"])}


def _run(case: AttentionFlags, problem: Problem, backend: str) -> Launch:
    wrapper, facts = _wrapper(case, problem, backend)
    if case.head_dim_qk != case.head_dim_vo:
        wrapper.prewarm_paged_kv_stride_variant()
    return planned_run(case, problem, backend, wrapper, facts, _operands(problem))


@paged_prefill.backend(
    "fa2",
    requires=fa2_limits,
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2."""
    return _run(case, problem, "fa2")


@paged_prefill.backend(
    "fa3",
    requires=(*fa3_limits, head_dims(64, 128, 256)),
    ignores=("enable_pdl",),
    documented="9.0",
)
def fa3(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-3, on Hopper."""
    return _run(case, problem, "fa3")


@paged_prefill.backend(
    "auto",
    requires=(*auto_limits, head_dims(64, 128, 256, 512)),
)
def auto(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2 or 3, as FlashInfer chooses."""
    return _run(case, problem, "auto")


@paged_prefill.backend(
    "cudnn",
    requires=cudnn_prefill_limits,
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def cudnn(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN through FlashInfer's wrapper."""
    wrapper, facts = _wrapper(
        case, problem, "cudnn", block_tables=problem["block_tables"], **cudnn_plan_options(case, problem)
    )
    out = {"out": empty_output(case, problem)}
    kwargs = {**_operands(problem), **tensor_scales(case, problem), **out}
    return Launch(wrapper.run, kwargs=kwargs, mutates=("out",), facts=facts)


@paged_prefill.backend(
    "cudnn-native",
    requires=cudnn_prefill_limits,
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def cudnn_native(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN, called directly."""
    caches = {"k_cache": problem["k_cache"], "v_cache": problem["v_cache"], "block_tables": problem["block_tables"]}
    return cudnn_prefill_call(case, problem, caches)


@paged_prefill.backend(
    "trtllm-gen",
    requires=trtllm_paged_limits,
    documented="10.0 10.3",
)
def trtllm_gen(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels through FlashInfer's wrapper, on Blackwell."""
    return _run(case, problem, "trtllm-gen")


@paged_prefill.backend(
    "trtllm-native",
    requires=trtllm_paged_limits,
    documented="10.0 10.3",
)
def trtllm_native(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, called directly, on Blackwell."""
    scales, query = scales_of(case), problem["q"]
    return Launch(
        flashinfer.prefill.trtllm_batch_context_with_kv_cache,
        kwargs={
            "query": query,
            "kv_cache": (problem["k_cache"], problem["v_cache"]),
            "workspace_buffer": workspace(query.device),
            "block_tables": problem["block_tables"],
            "seq_lens": problem["kv_len"],
            "max_q_len": case.s_qo,
            "max_kv_len": case.s_kv,
            "bmm1_scale": softmax_scale(case) * scales.q * scales.k,
            "bmm2_scale": scales.v,
            "batch_size": case.batch_size,
            "cum_seq_lens_q": problem["qo_indptr"],
            "cum_seq_lens_kv": problem["kv_token_indptr"],
            "kv_layout": "HND",
            "enable_pdl": case.enable_pdl,
            "causal": case.causal,
            "out": empty_output(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )


@paged_prefill.backend("torch", requires=(torch_formats,), ignores=("enable_pdl",))
def torch_sdpa(case: AttentionFlags, problem: Problem) -> Launch:
    """PyTorch's own attention, sequence by sequence over the gathered pages."""
    return eager.paged(case, problem, causal=case.causal)
