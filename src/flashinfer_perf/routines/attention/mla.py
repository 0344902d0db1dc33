"""Multi-head latent attention (DeepSeek) of one query token per sequence over a paged, compressed KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.requirement import capability, case_rule, on_generations
from flashinfer_perf.core.routine import Fact, narrowed, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.attention import paging
from flashinfer_perf.routines.attention.backends import (
    ALL_E4M3,
    SAME_16,
    flashinfer_installed,
    formats,
    planned,
    workspace,
)
from flashinfer_perf.routines.attention.eager import torch_formats
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.inputs import RENAMED, output_check
from flashinfer_perf.routines.attention.mla_inputs import NOPE_HEAD_DIM, mla_lines, mla_truth, mla_work, softmax_scale
from flashinfer_perf.routines.attention.operands import scales_of
from flashinfer_perf.routines.attention.rows import reference_rows
from flashinfer_perf.routines.attention.sequences import decoding, offsets
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

OPERANDS = (DType.BFLOAT16, DType.FLOAT16, DType.FP8_E4M3)


@routine(
    "BatchMLAPagedAttentionWrapper",
    flags=AttentionFlags,
    uses=(
        narrowed("page_size", default=REQUIRED, minimum=1),
        "batch_size",
        narrowed("s_qo", choices=(1,)),
        "s_kv",
        "num_qo_heads",
        narrowed("head_dim_ckv", default=REQUIRED),
        narrowed("head_dim_kpe", default=REQUIRED),
        narrowed("q_dtype", choices=OPERANDS),
        narrowed("kv_dtype", choices=OPERANDS),
        "random_actual_seq_len",
        "enable_pdl",
    ),
    facts=(
        Fact("avg_actual_seq_len", "mean length of the key-value sequences, rounded down"),
        Fact("plan_ms", "time that the wrapper's plan took"),
    ),
    renamed=RENAMED,
)
def mla(case: AttentionFlags, make: TensorFactory) -> Problem:
    """MLA attention proposed in the DeepSeek series of models, decoding from a paged cache."""
    sequences, scales = decoding(case, make), scales_of(case)
    pages = paging.shuffled_pages(make, sequences.kv_lens, case.s_kv, case.page_size)
    width = case.head_dim_ckv + case.head_dim_kpe
    cache_shape = (pages.in_pool, case.page_size, width)
    tensors = {
        "kv_cache": make.normal("kv_cache", cache_shape, case.kv_dtype, scales.k),
        "q": make.normal("q", (case.batch_size, case.num_qo_heads, width), case.q_dtype, scales.q),
        "qo_indptr": offsets(sequences.q_lens).to(make.device),
        **vars(pages),
    }
    rows = reference_rows(make, sequences, case.num_qo_heads, (width, case.head_dim_ckv))
    truth = partial(
        mla_truth,
        sequences=sequences,
        ckv=case.head_dim_ckv,
        sm_scale=softmax_scale(case),
        scales=scales,
        rows=rows,
    )
    return Problem(
        tensors=tensors,
        reference=truth,
        work=mla_work(case, sequences.kv_tokens),
        checks={"out": output_check(case, rows, sequences)},
        ranks=make.ranks,
        facts={"avg_actual_seq_len": sequences.average_kv},
        shown=mla_lines(case, tensors, sequences),
    )


whole_tiles = case_rule(
    "head_dim_ckv a multiple of 128 and head_dim_kpe a multiple of 64",
    lambda case: case.head_dim_ckv % 128 == 0 and case.head_dim_kpe % 64 == 0,
)
hopper_widths = case_rule("head_dim_ckv of 128, 256 or 512", lambda case: case.head_dim_ckv in (128, 256, 512))
deepseek_widths = case_rule(
    "head_dim_ckv of 512 and head_dim_kpe of 64", lambda case: (case.head_dim_ckv, case.head_dim_kpe) == (512, 64)
)
deepseek_widths_for_fp8 = case_rule(
    "head_dim_ckv of 512 and head_dim_kpe of 64 for an FP8 cache",
    lambda case: case.kv_dtype.bytes > 1 or (case.head_dim_ckv, case.head_dim_kpe) == (512, 64),
)
BFLOAT16_ON_E4M3 = (DType.BFLOAT16, DType.FP8_E4M3)
fa_formats = formats(*SAME_16, BFLOAT16_ON_E4M3)
BEFORE_AND_AFTER_HOPPER = (8, 10, 11, 12)
fp8_on_hopper = on_generations(BEFORE_AND_AFTER_HOPPER, formats(*SAME_16))


def _out(case: AttentionFlags, problem: Problem) -> torch.Tensor:
    q = problem["q"]
    return torch.empty(*q.shape[:2], case.head_dim_ckv, dtype=case.out_dtype.torch, device=q.device)


def _wrapper(case: AttentionFlags, problem: Problem, backend: str) -> Launch:
    """FlashInfer's wrapper, planned; run is what is timed, as in a serving engine."""
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace(problem["q"].device), backend=backend)
    facts = planned(
        wrapper.plan,
        metadata=flashinfer.mla.MLAPlanMetadata.csr(
            problem["qo_indptr"], problem["kv_indptr"], problem["kv_indices"], problem["kv_len"]
        ),
        num_heads=case.num_qo_heads,
        head_dim_ckv=case.head_dim_ckv,
        head_dim_kpe=case.head_dim_kpe,
        page_size=case.page_size,
        causal=False,
        sm_scale=softmax_scale(case),
        q_data_type=case.q_dtype.torch,
        kv_data_type=case.kv_dtype.torch,
        query_layout="packed",
        kv_cache_layout="packed",
    )
    scales: dict[str, Any] = {}
    if case.kv_dtype.bytes == 1:
        scales = {"ckv_scale": scales_of(case).k, "kpe_scale": scales_of(case).k}
    return Launch(
        wrapper.run,
        kwargs={"query": problem["q"], "kv_cache": problem["kv_cache"], **scales, "out": _out(case, problem)},
        mutates=("out",),
        facts=facts,
    )


@mla.backend(
    "fa2",
    requires=(
        capability(minimum="8.0"),
        flashinfer_installed,
        fa_formats,
        fp8_on_hopper,
        whole_tiles,
        deepseek_widths_for_fp8,
    ),
    ignores=("enable_pdl",),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2."""
    return _wrapper(case, problem, "fa2")


@mla.backend(
    "fa3",
    requires=(capability(9), flashinfer_installed, fa_formats, whole_tiles, hopper_widths, deepseek_widths_for_fp8),
    ignores=("enable_pdl",),
    documented="9.0",
)
def fa3(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-3, on Hopper."""
    return _wrapper(case, problem, "fa3")


@mla.backend(
    "cutlass",
    requires=(
        capability(10, 11),
        flashinfer_installed,
        formats(*SAME_16),
        deepseek_widths,
        case_rule("num_qo_heads of 128", lambda case: case.num_qo_heads == 128),
        case_rule("page_size a divisor of 128", lambda case: 128 % case.page_size == 0),
    ),
    ignores=("enable_pdl",),
    documented="10.0 10.3",
)
def cutlass(case: AttentionFlags, problem: Problem) -> Launch:
    """CUTLASS, on Blackwell."""
    return _wrapper(case, problem, "cutlass")


@mla.backend(
    "trtllm-native",
    requires=(
        # On 12.x the library has XQA in its place, whose output and scales are others; that was never run here.
        capability(10),
        flashinfer_installed,
        formats((DType.BFLOAT16, DType.BFLOAT16), *ALL_E4M3),
        deepseek_widths,
        case_rule("page_size of 32 or 64", lambda case: case.page_size in (32, 64)),
        case_rule("num_qo_heads up to 64 or from 128 on", lambda case: not 64 < case.num_qo_heads < 128),
        case_rule(
            "pages of every sequence that fill multiples of 128 tokens",
            lambda case: (-(-case.s_kv // case.page_size) * case.page_size) % 128 == 0,
        ),
    ),
    documented="10.0 10.3",
)
def trtllm_native(case: AttentionFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, called directly, on Blackwell."""
    scales = scales_of(case)
    return Launch(
        _native,
        kwargs={
            "q": problem["q"],
            "kv_cache": problem["kv_cache"],
            "workspace_buffer": workspace(problem["q"].device),
            "qk_nope_head_dim": NOPE_HEAD_DIM,
            "kv_lora_rank": case.head_dim_ckv,
            "qk_rope_head_dim": case.head_dim_kpe,
            "block_tables": problem["block_tables"],
            "seq_lens": problem["kv_len"],
            "max_seq_len": case.s_kv,
            "bmm1_scale": softmax_scale(case) * scales.q * scales.k,
            "bmm2_scale": scales.k,
            "enable_pdl": case.enable_pdl,
            "out": _out(case, problem),
        },
        mutates=("out",),
        scratch=("workspace_buffer",),
    )


def _native(q: torch.Tensor, out: torch.Tensor, **options: Any) -> None:
    """Queries and outputs have a dimension of their own for the queries of a sequence."""
    flashinfer.mla.trtllm_batch_decode_with_kv_cache_mla(query=q.unsqueeze(1), out=out.unsqueeze(1), **options)


@mla.backend("torch", requires=(torch_formats,), ignores=("enable_pdl",))
def torch_sdpa(case: AttentionFlags, problem: Problem) -> Launch:
    """PyTorch's own attention, sequence by sequence over the gathered pages."""
    scales = scales_of(case)
    return Launch(
        attend,
        kwargs={
            "q": problem["q"],
            "kv_cache": problem["kv_cache"],
            "block_tables": problem["block_tables"],
            "lengths": problem["kv_len"].tolist(),
            "ckv": case.head_dim_ckv,
            "sm_scale": softmax_scale(case) * scales.q * scales.k,
            "v_scale": scales.k,
            "out": _out(case, problem),
        },
        mutates=("out",),
    )


def attend(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: Sequence[int],
    ckv: int,
    sm_scale: float,
    v_scale: float,
    out: torch.Tensor,
) -> None:
    """Writes out (batch, heads, ckv): all heads of a sequence attend to its one compressed key-value head."""
    for sequence, length in enumerate(lengths):
        pages = block_tables[sequence, : -(-length // kv_cache.shape[1])]
        key = paging.taken(kv_cache, pages).flatten(0, 1)[:length].to(out.dtype)
        query = q[sequence].to(out.dtype)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, key[:, :ckv], scale=sm_scale)
        out[sequence] = found if v_scale == 1 else found * v_scale
