"""RoPE in PyTorch operations, one after the other: in fp32, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import torch

Pair: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
Scaling: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""Makes of plain frequencies those that are used."""


def frequencies(rotary_dim: int, rope_theta: float, device: torch.device) -> torch.Tensor:
    """Radians per position of each pair, (rotary_dim / 2,) fp32, before scaling."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / -rotary_dim
    return torch.pow(rope_theta, exponents)


def cos_sin(positions: torch.Tensor, radians: torch.Tensor) -> Pair:
    """Cosine and sine of each token and pair, (tokens, pairs) fp32."""
    angles = positions.float()[:, None] * radians
    return angles.cos(), angles.sin()


def cached_cos_sin(cos_sin_cache: torch.Tensor, positions: torch.Tensor) -> Pair:
    """The same from a cache (longest, rotary_dim)."""
    cos, sin = cos_sin_cache[positions].chunk(2, dim=-1)
    return cos, sin


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """x (tokens, heads, rotary_dim), fp32."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = (x[..., ::2], x[..., 1::2]) if interleave else x.chunk(2, dim=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(pair, dim=-1).flatten(-2) if interleave else torch.cat(pair, dim=-1)


def partly_rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """x (tokens, heads, head_dim), of which as many dimensions are rotated as there are cosines and sines."""
    rotary_dim = 2 * cos.shape[-1]
    turned = rotated(x[..., :rotary_dim].float(), cos, sin, interleave).to(x.dtype)
    return torch.cat([turned, x[..., rotary_dim:]], dim=-1)


def apply_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int,
    interleave: bool,
    rope_theta: float,
    scaling: Scaling,
) -> Pair:
    """q and k (tokens, heads, head_dim) rotated; sequence i begins at token indptr[i], which is at offsets[i]."""
    tokens = torch.arange(len(q), dtype=indptr.dtype, device=q.device)
    sequence = torch.searchsorted(indptr, tokens, right=True) - 1
    pos_ids = tokens - indptr[sequence] + offsets[sequence]
    return apply_rope_pos_ids(q, k, pos_ids, rotary_dim, interleave, rope_theta, scaling)


def apply_rope_pos_ids(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int,
    interleave: bool,
    rope_theta: float,
    scaling: Scaling,
) -> Pair:
    """The same with the position of each token, (tokens,)."""
    turn = cos_sin(pos_ids, scaling(frequencies(rotary_dim, rope_theta, q.device)))
    return partly_rotated(q, *turn, interleave), partly_rotated(k, *turn, interleave)


def apply_rope_with_cos_sin_cache(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> Pair:
    """query and key (tokens, heads * head_size) rotated by the cache."""
    turn = cached_cos_sin(cos_sin_cache, positions)
    q, k = (
        partly_rotated(x.unflatten(-1, (-1, head_size)), *turn, interleave=not is_neox).flatten(1) for x in (query, key)
    )
    return q, k


def rope_quantize_fp8(
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    q_nope: torch.Tensor | None,
    k_nope: torch.Tensor | None,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    is_neox: bool,
    quantize_dtype: DType,
    quant_scale_q: float,
    quant_scale_kv: float,
    **written: torch.Tensor,
) -> None:
    """Into ``q_rope_out`` and its like: rotated or not, times the scale, in FP8. Keys (tokens, dim) have one head."""
    turn = cached_cos_sin(cos_sin_cache, pos_ids)
    for name, x, scale in (("q_rope_out", q_rope, quant_scale_q), ("k_rope_out", k_rope, quant_scale_kv)):
        heads = x.reshape(len(x), -1, x.shape[-1]).float()
        turned = rotated(heads, *turn, interleave=not is_neox).reshape(x.shape)
        written[name].copy_(encode(turned * scale, quantize_dtype))
    for name, rest, scale in (("q_nope_out", q_nope, quant_scale_q), ("k_nope_out", k_nope, quant_scale_kv)):
        if rest is not None:
            written[name].copy_(encode(rest.float() * scale, quantize_dtype))


def rope_quantize_fp8_append_paged_kv_cache(
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    q_nope: torch.Tensor | None,
    k_nope: torch.Tensor | None,
    v: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    paged_kv_cache: Pair,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    is_neox: bool,
    quantize_dtype: DType,
    quant_scale_q: float,
    quant_scale_kv: float,
    page_size: int,
    kv_layout: str,
    **written: torch.Tensor,
) -> None:
    """Queries as above; keys, rotated part first, and values into the slots of their tokens."""
    keys = torch.empty_like(v, dtype=quantize_dtype.torch)
    rotary_dim = k_rope.shape[-1]
    parts = {"k_rope_out": keys[..., :rotary_dim], "k_nope_out": keys[..., rotary_dim:]}
    rope_quantize_fp8(
        q_rope,
        k_rope,
        q_nope,
        k_nope,
        cos_sin_cache,
        pos_ids,
        is_neox,
        quantize_dtype,
        quant_scale_q,
        quant_scale_kv,
        **{**parts, **written},
    )
    values = encode(v.float() * quant_scale_kv, quantize_dtype)
    pages = kv_indices[kv_indptr[batch_indices] + positions // page_size]
    for cache, rows in zip(paged_kv_cache, (keys, values), strict=True):
        slots = cache.view(torch.uint8)  # torch has no indexing of FP8 everywhere
        by_token = slots if kv_layout == "NHD" else slots.transpose(1, 2)
        by_token[pages, positions % page_size] = rows.view(torch.uint8)
