"""Decoding attention over a paged KV cache: one query token of each sequence, or a few (speculative decoding)."""

from __future__ import annotations

import dataclasses

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.core.routine import Rule, narrowed, routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.attention import eager, xqa
from flashinfer_perf.routines.attention.backends import (
    ALL_E4M3,
    E4M3_CACHE,
    FP8_CACHE,
    SAME_16,
    cudnn_installed,
    empty_output,
    equal_dims,
    flashinfer_installed,
    float_scales,
    formats,
    fp8_queries_on_hopper,
    fp8_wide_heads,
    group_size,
    head_dims,
    needs_ampere_for_bfloat16,
    page_of_a_power_of_two,
    planned,
    workspace,
)
from flashinfer_perf.routines.attention.eager import torch_formats
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.inputs import (
    FACTS,
    RENAMED,
    index_lines,
    paged_problem,
    pool_lines,
    whole_groups,
)
from flashinfer_perf.routines.attention.operands import scales_of, softmax_scale
from flashinfer_perf.routines.attention.sequences import decoding
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "BatchDecodeWithPagedKVCacheWrapper",
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
        "random_actual_seq_len",
        "enable_pdl",
    ),
    facts=FACTS,
    rules=(
        whole_groups,
        Rule(
            lambda case: case.s_qo <= case.s_kv,
            "s_qo ({s_qo}) must not be above s_kv ({s_kv}): the queries are the last tokens of a sequence",
        ),
    ),
    renamed={"trtllm": "trtllm-gen", **RENAMED},
)
def decode(case: AttentionFlags, make: TensorFactory) -> Problem:
    """Decode attention with paged KV cache; several queries of a sequence (s_qo) see each other causally."""
    sequences = decoding(case, make)
    problem = paged_problem(case, make, sequences, causal=case.s_qo > 1)
    shown = (
        Shown("Average actual seq len", sequences.average_kv, level=1),
        Shown("actual_seq_lens_kv.flatten()", sequences.kv_lens),
        *pool_lines(case, problem),
        *index_lines(case, problem),
    )
    facts = {**problem.facts, "avg_actual_seq_len": sequences.average_kv}
    return dataclasses.replace(problem, shown=shown, facts=facts)


CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8, 16)
one_query = case_rule("s_qo of 1", lambda case: case.s_qo == 1)
whole_heads = head_dims(64, 128, 256, 512)


def _wrapper(case: AttentionFlags, problem: Problem, backend: str, tensor_cores: bool) -> Launch:
    """FlashInfer's wrapper, planned; run is what is timed, as in a serving engine."""
    wrapper = flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper(
        workspace(problem["q"].device), "HND", use_tensor_cores=tensor_cores, backend=backend
    )
    facts = planned(
        wrapper.plan,
        indptr=problem["kv_indptr"],
        indices=problem["kv_indices"],
        last_page_len=problem["kv_last_page_len"],
        num_qo_heads=case.num_qo_heads,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim_qk,
        page_size=case.page_size,
        q_data_type=case.q_dtype.torch,
        kv_data_type=case.kv_dtype.torch,
        o_data_type=case.out_dtype.torch,
        sm_scale=softmax_scale(case),
        block_tables=problem["block_tables"],
        q_len_per_req=case.s_qo,
    )
    resolved = "fa2_tc" if tensor_cores and wrapper.resolved_backend == "fa2" else wrapper.resolved_backend
    return Launch(
        wrapper.run,
        kwargs={
            "q": problem["q"],
            "paged_kv_cache": (problem["k_cache"], problem["v_cache"]),
            **float_scales(case),
            "out": empty_output(case, problem),
            "enable_pdl": case.enable_pdl,
        },
        mutates=("out",),
        facts=facts,
        resolved_backend=resolved,
    )


@decode.backend(
    "fa2",
    requires=(
        capability(minimum="7.5"),
        flashinfer_installed,
        needs_ampere_for_bfloat16,
        one_query,
        whole_heads,
        formats(*SAME_16, *FP8_CACHE),
        case_rule(
            "num_qo_heads / num_kv_heads of 1, 2, 3, 4, 6, 8 or 16",
            lambda case: group_size(case) in CUDA_CORE_GROUPS,
        ),
    ),
    documented="7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashInfer's decoding kernel on CUDA cores."""
    return _wrapper(case, problem, "fa2", tensor_cores=False)


@decode.backend(
    "fa2_tc",
    requires=(
        capability(minimum="8.0"),
        flashinfer_installed,
        whole_heads,
        formats(*SAME_16, *FP8_CACHE),
        fp8_wide_heads,
    ),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2_tc(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2 on tensor cores: the prefill kernel, for the heads of a group."""
    return _wrapper(case, problem, "fa2", tensor_cores=True)


@decode.backend(
    "fa3",
    requires=(
        capability(9),
        flashinfer_installed,
        one_query,
        head_dims(64, 128, 256),
        formats(*SAME_16, *ALL_E4M3),
        fp8_wide_heads,
    ),
    ignores=("enable_pdl",),
)
def fa3(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-3, on Hopper."""
    return _wrapper(case, problem, "fa3", tensor_cores=True)


@decode.backend(
    "auto",
    requires=(
        capability(minimum="8.0"),
        flashinfer_installed,
        whole_heads,
        formats(*SAME_16, *FP8_CACHE, *ALL_E4M3),
        fp8_wide_heads,
        fp8_queries_on_hopper,
    ),
)
def auto(case: AttentionFlags, problem: Problem) -> Launch:
    """Whichever of its tensor-core backends FlashInfer chooses."""
    return _wrapper(case, problem, "auto", tensor_cores=True)


@decode.backend(
    "cudnn",
    requires=(capability(minimum="8.0"), flashinfer_installed, cudnn_installed, formats(*SAME_16), equal_dims),
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def cudnn(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN through FlashInfer's wrapper."""
    return _wrapper(case, problem, "cudnn", tensor_cores=False)


@decode.backend(
    "cudnn-native",
    requires=(capability(minimum="8.0"), flashinfer_installed, cudnn_installed, formats(*SAME_16)),
    ignores=("enable_pdl",),
)
def cudnn_native(case: AttentionFlags, problem: Problem) -> Launch:
    """cuDNN, called directly."""
    return Launch(
        flashinfer.decode.cudnn_batch_decode_with_kv_cache,
        kwargs={
            "q": problem["q"],
            "k_cache": problem["k_cache"],
            "v_cache": problem["v_cache"],
            "scale": softmax_scale(case),
            "workspace_buffer": workspace(problem["q"].device),
            "max_sequence_kv": case.s_kv,
            "actual_seq_lens_kv": problem["kv_len"].view(-1, 1, 1, 1),
            "block_tables": problem["block_tables"],
            "is_cuda_graph_compatible": True,
            "q_len_per_req": case.s_qo,
            "out": empty_output(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )


@decode.backend(
    "trtllm-gen",
    requires=(
        capability(10),
        flashinfer_installed,
        formats(*SAME_16, *ALL_E4M3, (DType.BFLOAT16, DType.FP8_E4M3)),
        equal_dims,
        page_of_a_power_of_two,
    ),
    documented="10.0 10.3",
)
def trtllm_gen(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels through FlashInfer's wrapper, on Blackwell."""
    return _wrapper(case, problem, "trtllm-gen", tensor_cores=True)


@decode.backend(
    "trtllm-native",
    requires=(
        capability(9, 10, 12),
        flashinfer_installed,
        formats(*SAME_16, *E4M3_CACHE, *ALL_E4M3),
        equal_dims,
        page_of_a_power_of_two,
        *xqa.limits,
    ),
    documented="10.0 10.3",
)
def trtllm_native(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, called directly: generated ones on Blackwell, XQA on Hopper and compute capability 12."""
    scales, query = scales_of(case), problem["q"]
    return Launch(
        flashinfer.decode.trtllm_batch_decode_with_kv_cache,
        kwargs={
            "query": query,
            "kv_cache": (problem["k_cache"], problem["v_cache"]),
            "workspace_buffer": workspace(query.device),
            "block_tables": problem["block_tables"],
            "seq_lens": problem["kv_len"],
            "max_seq_len": case.s_kv,
            "bmm1_scale": softmax_scale(case) * scales.q * scales.k,
            "bmm2_scale": scales.v,
            "kv_layout": "HND",
            "backend": "auto",
            "enable_pdl": case.enable_pdl,
            "q_len_per_req": case.s_qo,
            "mask": xqa.causal_bits(case.batch_size, case.s_qo, query.device) if case.s_qo > 1 else None,
            "out": empty_output(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )


@decode.backend("torch", requires=(torch_formats,), ignores=("enable_pdl",))
def torch_sdpa(case: AttentionFlags, problem: Problem) -> Launch:
    """PyTorch's own attention, sequence by sequence over the gathered pages."""
    return eager.paged(case, problem, causal=case.s_qo > 1)
