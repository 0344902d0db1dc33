"""PyTorch's own attention, sequence by sequence: on any device, for any head dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashinfer_perf.core.requirement import case_rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.backends import FP8, empty_output
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import Scales, scales_of, softmax_scale
from flashinfer_perf.routines.attention.paging import taken
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

torch_formats = case_rule("kv_dtype the same as q_dtype, or FP8", lambda case: case.kv_dtype in (case.q_dtype, *FP8))


def paged(case: AttentionFlags, problem: Problem, causal: bool) -> Launch:
    """The call over a paged cache. Lengths are known to the host before it, as shapes depend on them."""
    names = ("q", "k_cache", "v_cache", "block_tables")
    return Launch(attend_paged, kwargs={**_arguments(case, problem, names), "causal": causal}, mutates=("out",))


def ragged(case: AttentionFlags, problem: Problem) -> Launch:
    """The call over keys and values that lie sequence by sequence."""
    arguments = _arguments(case, problem, ("q", "k", "v"))
    return Launch(attend_ragged, kwargs={**arguments, "causal": case.causal}, mutates=("out",))


def _arguments(case: AttentionFlags, problem: Problem, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        **{name: problem[name] for name in names},
        "q_lens": problem["q_len"].tolist(),
        "kv_lens": problem["kv_len"].tolist(),
        "sm_scale": softmax_scale(case),
        "scales": scales_of(case),
        "out": empty_output(case, problem),
    }


def attend_paged(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    causal: bool,
    sm_scale: float,
    scales: Scales,
    out: torch.Tensor,
) -> None:
    """Gathers the pages of each sequence, then attends. Caches are (pages, kv heads, page size, dim)."""
    start = 0
    for sequence, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        pages = block_tables[sequence, : -(-kv_len // k_cache.shape[2])]
        keys, values = (taken(cache, pages).transpose(0, 1).flatten(1, 2) for cache in (k_cache, v_cache))
        rows = slice(start, start + q_len)
        out[rows] = one_sequence(q[rows], keys[:, :kv_len], values[:, :kv_len], causal, sm_scale, scales, out.dtype)
        start += q_len


def attend_ragged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    causal: bool,
    sm_scale: float,
    scales: Scales,
    out: torch.Tensor,
) -> None:
    """Keys and values lie sequence by sequence, (tokens, kv heads, dim)."""
    q_start = kv_start = 0
    for q_len, kv_len in zip(q_lens, kv_lens, strict=True):
        rows, columns = slice(q_start, q_start + q_len), slice(kv_start, kv_start + kv_len)
        keys, values = k[columns].transpose(0, 1), v[columns].transpose(0, 1)
        out[rows] = one_sequence(q[rows], keys, values, causal, sm_scale, scales, out.dtype)
        q_start, kv_start = rows.stop, columns.stop


def one_sequence(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    causal: bool,
    sm_scale: float,
    scales: Scales,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(tokens, heads, value dim) of queries (tokens, heads, dim), keys and values (kv heads, kv, dim).

    FP8 operands are converted without loss; their scales go into the softmax scale and the output.
    """
    from torch.nn.attention.bias import causal_lower_right

    query, keys, values = (tensor.to(dtype)[None] for tensor in (q.transpose(0, 1), keys, values))
    q_len, kv_len = query.shape[2], keys.shape[2]
    masked = causal and q_len > 1
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=causal_lower_right(q_len, kv_len) if masked and q_len != kv_len else None,  # type: ignore[arg-type]
        is_causal=masked and q_len == kv_len,
        scale=sm_scale * scales.q * scales.k,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    out = out[0].transpose(0, 1)
    return out if scales.v == 1 else out * scales.v
