"""Multi-head latent attention (DeepSeek) of one query token per sequence over a paged, compressed KV cache."""

from __future__ import annotations

import math
from functools import partial
from time import perf_counter
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.requirement import capability, case_rule, package
from flashinfer_perf.core.routine import Fact, narrowed, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.attention import paging, reference
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

NOPE_HEAD_DIM = 128
"""Head dimension of DeepSeek's keys before compression, without the rotary part; the softmax scale comes from it."""
WORKSPACE_BYTES = 128 << 20
SIXTEEN_BITS = (DType.BFLOAT16, DType.FLOAT16)
needs_same_format = case_rule("the same format for query and cache", lambda case: case.q_dtype is case.kv_dtype)
needs_whole_tiles = case_rule(
    "head_dim_ckv a multiple of 128 and head_dim_kpe a multiple of 64",
    lambda case: case.head_dim_ckv % 128 == 0 and case.head_dim_kpe % 64 == 0,
)
needs_hopper_widths = case_rule("head_dim_ckv of 128, 256 or 512", lambda case: case.head_dim_ckv in (128, 256, 512))


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
        narrowed("q_dtype", choices=SIXTEEN_BITS),
        narrowed("kv_dtype", choices=SIXTEEN_BITS),
        "random_actual_seq_len",
    ),
    facts=(
        Fact("avg_actual_seq_len", "mean length of the key-value sequences, rounded down"),
        Fact("plan_ms", "time that the wrapper's plan took"),
    ),
)
def mla(case: AttentionFlags, make: TensorFactory) -> Problem:
    """MLA attention proposed in the DeepSeek series of models, decoding from a paged cache."""
    lengths = paging.kv_lengths(make, case.batch_size, case.s_kv, case.page_size, case.random_actual_seq_len)
    pages = paging.page_pool(make, lengths, case.s_kv, case.page_size)
    heads, ckv, kpe = case.num_qo_heads, case.head_dim_ckv, case.head_dim_kpe
    tensors = {
        "q_nope": make.normal("q_nope", (case.batch_size, heads, ckv), case.q_dtype),
        "q_pe": make.normal("q_pe", (case.batch_size, heads, kpe), case.q_dtype),
        "ckv_cache": make.normal("ckv_cache", (pages.pool_pages, case.page_size, ckv), case.kv_dtype),
        "kpe_cache": make.normal("kpe_cache", (pages.pool_pages, case.page_size, kpe), case.kv_dtype),
        "block_tables": pages.block_tables,
        "qo_indptr": torch.arange(case.batch_size + 1, dtype=torch.int32, device=make.device),
        "kv_indptr": pages.kv_indptr,
        "kv_indices": pages.kv_indices,
        "kv_len": pages.lengths,
    }
    return Problem(
        tensors=tensors,
        reference=partial(reference.mla_decode, sm_scale=softmax_scale(case)),
        work=work(case, int(lengths.sum())),
        checks={"out": tolerance.for_attention(case.q_dtype, case.q_dtype)},
        ranks=make.ranks,
        facts={"avg_actual_seq_len": int(lengths.sum()) // case.batch_size},
        shown=_shown(case, tensors, lengths),
    )


def softmax_scale(case: AttentionFlags) -> float:
    """1 / sqrt(dimension of a key before compression, rotary part included)."""
    return 1 / math.sqrt(NOPE_HEAD_DIM + case.head_dim_kpe)


def work(case: AttentionFlags, total_kv: int) -> Work:
    """The documented formulas, over the actual lengths."""
    ckv, kpe, heads = case.head_dim_ckv, case.head_dim_kpe, case.num_qo_heads
    query = case.batch_size * heads * (ckv + kpe) * case.q_dtype.bytes
    output = case.batch_size * heads * ckv * case.q_dtype.bytes
    cache = total_kv * (ckv + kpe) * case.kv_dtype.bytes
    return Work(flops=2 * total_kv * heads * (2 * ckv + kpe), bytes=query + cache + output)


def _shown(case: AttentionFlags, tensors: dict[str, torch.Tensor], lengths: torch.Tensor) -> tuple[Shown, ...]:
    names = ("block_tables", "ckv_cache", "kpe_cache", "qo_indptr", "kv_indptr", "kv_indices")
    return (
        Shown("Average actual seq len", int(lengths.sum()) // case.batch_size, level=1),
        Shown("actual_seq_lens_kv.flatten()", lengths),
        Shown("q_nope.shape", tensors["q_nope"].shape),
        Shown("q_pe.shape", tensors["q_pe"].shape),
        Shown("num_pages_per_seq", tensors["block_tables"].shape[1]),
        Shown("total_num_pages", tensors["block_tables"].numel()),
        *(Shown(f"{name}.shape", tensors[name].shape) for name in names),
        Shown("sm_scale", softmax_scale(case)),
    )


def _flashinfer_wrapper(case: AttentionFlags, problem: Problem, backend: str) -> Launch:
    """FlashInfer's wrapper, planned; run is what is timed, as in a serving engine."""
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=problem["q_nope"].device)
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend=backend)
    began = perf_counter()
    wrapper.plan(
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
        query_layout="split",
        kv_cache_layout="split",
    )
    return Launch(
        wrapper.run,
        kwargs={
            "query": (problem["q_nope"], problem["q_pe"]),
            "kv_cache": (problem["ckv_cache"], problem["kpe_cache"]),
            "out": torch.empty_like(problem["q_nope"]),
        },
        mutates=("out",),
        facts={"plan_ms": (perf_counter() - began) * 1e3},
    )


@mla.backend(
    "fa2",
    requires=(
        capability(minimum="8.0"),
        package("flashinfer", extra="flashinfer"),
        needs_same_format,
        needs_whole_tiles,
    ),
    documented="8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def fa2(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-2."""
    return _flashinfer_wrapper(case, problem, "fa2")


@mla.backend(
    "fa3",
    requires=(
        capability(9),
        package("flashinfer", extra="flashinfer"),
        needs_same_format,
        needs_whole_tiles,
        needs_hopper_widths,
    ),
    documented="9.0",
)
def fa3(case: AttentionFlags, problem: Problem) -> Launch:
    """FlashAttention-3, on Hopper."""
    return _flashinfer_wrapper(case, problem, "fa3")


@mla.backend("torch", requires=(needs_same_format,))
def torch_sdpa(case: AttentionFlags, problem: Problem) -> Launch:
    """PyTorch's own attention, sequence by sequence over the gathered pages."""
    names = ("q_nope", "q_pe", "ckv_cache", "kpe_cache", "kv_indices")
    kwargs: dict[str, Any] = {name: problem[name] for name in names}
    kwargs |= {"kv_indptr": problem["kv_indptr"].tolist(), "lengths": problem["kv_len"].tolist()}
    kwargs |= {"sm_scale": softmax_scale(case), "out": torch.empty_like(problem["q_nope"])}
    return Launch(attend, kwargs=kwargs, mutates=("out",))


def attend(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    ckv_cache: torch.Tensor,
    kpe_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: list[int],
    lengths: list[int],
    sm_scale: float,
    out: torch.Tensor,
) -> None:
    """Writes out (batch, heads, ckv): all heads of a sequence attend to its one compressed key-value head."""
    query = torch.cat((q_nope, q_pe), dim=-1)
    for sequence, length in enumerate(lengths):
        pages = kv_indices[kv_indptr[sequence] : kv_indptr[sequence + 1]]
        value = ckv_cache.index_select(0, pages).flatten(0, 1)[:length]
        key = torch.cat((value, kpe_cache.index_select(0, pages).flatten(0, 1)[:length]), dim=-1)
        out[sequence] = torch.nn.functional.scaled_dot_product_attention(query[sequence], key, value, scale=sm_scale)
