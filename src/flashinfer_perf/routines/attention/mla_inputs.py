"""What a problem of multi-head latent attention consists of: its truth, its work, and the lines about it."""

from __future__ import annotations

import math

from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention import paging, reference
from flashinfer_perf.routines.attention.backends import WORKSPACE_BYTES
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import Scales
from flashinfer_perf.routines.attention.sequences import Sequences
from flashinfer_perf.run.problem import Shown

NOPE_HEAD_DIM = 128
"""Head dimension of DeepSeek's keys before compression, without the rotary part; the softmax scale comes from it."""


def mla_truth(
    *,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    sequences: Sequences,
    ckv: int,
    sm_scale: float,
    scales: Scales,
    rows: torch.Tensor | None,
    **unused: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The outputs (rows, heads, ckv) in fp32: softmax(q k^T * sm_scale) v, operands multiplied by their scales.

    All heads attend to one compressed key; its first ckv elements are the value, the rest is rotary.
    """
    kv_lens = sequences.kv_lens.tolist()

    def fetch(sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys = paging.gathered(kv_cache[:, None], block_tables[sequence], kv_lens[sequence])
        return keys, keys[..., :ckv]

    scale = sm_scale * scales.q * scales.k
    return {"out": scales.k * reference.attention(q, fetch, sequences, causal=False, sm_scale=scale, rows=rows)}


def softmax_scale(case: AttentionFlags) -> float:
    """1 / sqrt(dimension of a key before compression, rotary part included)."""
    return 1 / math.sqrt(NOPE_HEAD_DIM + case.head_dim_kpe)


def mla_work(case: AttentionFlags, total_kv: int) -> Work:
    """The documented formulas, over the actual lengths; the output in the format that it really has."""
    ckv, kpe, heads = case.head_dim_ckv, case.head_dim_kpe, case.num_qo_heads
    query = case.batch_size * heads * (ckv + kpe) * case.q_dtype.bytes
    output = case.batch_size * heads * ckv * case.out_dtype.bytes
    cache = total_kv * (ckv + kpe) * case.kv_dtype.bytes
    return Work(flops=2 * total_kv * heads * (2 * ckv + kpe), bytes=query + cache + output)


def mla_lines(case: AttentionFlags, tensors: dict[str, torch.Tensor], sequences: Sequences) -> tuple[Shown, ...]:
    """The documented lines, in their order."""
    q, cache, ckv = tensors["q"], tensors["kv_cache"], case.head_dim_ckv
    return (
        Shown("Average actual seq len", sequences.average_kv, level=1),
        Shown("actual_seq_lens_kv.flatten()", sequences.kv_lens),
        Shown("q_nope.shape", q[..., :ckv].shape),
        Shown("q_pe.shape", q[..., ckv:].shape),
        Shown("q.shape", q.shape),
        Shown("num_pages_per_seq", tensors["block_tables"].shape[1]),
        Shown("total_num_pages", tensors["block_tables"].numel()),
        Shown("block_tables.shape", tensors["block_tables"].shape),
        Shown("ckv_cache.shape", cache[..., :ckv].shape),
        Shown("kpe_cache.shape", cache[..., ckv:].shape),
        Shown("kv_cache.shape", cache.shape),
        *(Shown(f"{name}.shape", tensors[name].shape) for name in ("qo_indptr", "kv_indptr", "kv_indices")),
        Shown("actual_seq_lens_kv.shape", sequences.kv_lens.shape),
        Shown("sm_scale", softmax_scale(case)),
        Shown("workspace_buffer.shape", torch.Size([WORKSPACE_BYTES])),
    )
