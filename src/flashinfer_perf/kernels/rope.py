"""RoPE in Triton, for every NVIDIA GPU since Ampere: angles computed as it goes, queries and keys in one launch.

A program has some tokens and some heads: cosines and sines are computed once for all its heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl


class RopeTiling(NamedTuple):
    """A program's share; powers of two. With 64 pairs to a head a thread moves 16 bytes at a time."""

    tokens: int = 4
    heads: int = 8
    warps: int = 1


class Scaling(NamedTuple):
    """How frequencies are scaled: divided, or blended as Llama 3.1 does where ``high`` is above ``low``."""

    divisor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    old_context_len: int = 0


@triton.jit
def _position(token, present, places, offsets, sequences, BY_OFFSETS: tl.constexpr, STEPS: tl.constexpr):
    """Of each token: given, or counted from the start of its sequence, which a binary search finds."""
    if BY_OFFSETS:
        first = tl.zeros_like(token)
        last = first + sequences - 1
        for _ in range(STEPS):
            middle = (first + last + 1) // 2
            begun = tl.load(places + middle) <= token
            first = tl.where(begun, middle, first)
            last = tl.where(begun, last, middle - 1)
        position = token - tl.load(places + first) + tl.load(offsets + first)
    else:
        position = tl.load(places + token, mask=present, other=0)
    return position.to(tl.float32)


@triton.jit
def _frequency(pair, octaves, inverse_divisor, slope, shift, BLEND: tl.constexpr):
    """Radians per position: 2^(-pair octaves), scaled."""
    plain = tl.exp2(-pair.to(tl.float32) * octaves)
    divided = plain * inverse_divisor
    if BLEND:
        kept = tl.minimum(tl.maximum(plain * slope + shift, 0.0), 1.0)
        frequency = (1.0 - kept) * divided + kept * plain
    else:
        frequency = divided
    return frequency


@triton.jit
def _turn(x, out, rows, cos, sin, present, HALF: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVE: tl.constexpr):
    """The rotated part of one head of some tokens."""
    pair = tl.arange(0, PAIRS)[None, :]
    if INTERLEAVE:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        there = present[:, None] & (column < 2 * HALF)
        both = tl.load(x + rows[:, None] + column, mask=there, other=0.0).to(tl.float32)
        one, two = tl.split(tl.reshape(both, (both.shape[0], PAIRS, 2)))
        turned = tl.join(one * cos - two * sin, two * cos + one * sin)
        tl.store(out + rows[:, None] + column, tl.reshape(turned, both.shape).to(out.dtype.element_ty), mask=there)
    else:
        there = present[:, None] & (pair < HALF)
        one = tl.load(x + rows[:, None] + pair, mask=there, other=0.0).to(tl.float32)
        two = tl.load(x + rows[:, None] + HALF + pair, mask=there, other=0.0).to(tl.float32)
        tl.store(out + rows[:, None] + pair, (one * cos - two * sin).to(out.dtype.element_ty), mask=there)
        tl.store(out + rows[:, None] + HALF + pair, (two * cos + one * sin).to(out.dtype.element_ty), mask=there)


@triton.jit
def _copy(x, out, rows, present, FIRST: tl.constexpr, COUNT: tl.constexpr, REST: tl.constexpr):
    """The part of a head that is not rotated."""
    column = tl.arange(0, REST)[None, :]
    there = present[:, None] & (column < COUNT)
    values = tl.load(x + rows[:, None] + FIRST + column, mask=there, other=0.0)
    tl.store(out + rows[:, None] + FIRST + column, values, mask=there)


@triton.jit
def rotate_heads(
    q,
    k,
    q_rope,
    k_rope,
    places,
    offsets,
    tokens,
    sequences,
    q_heads,
    k_heads,
    octaves,
    inverse_divisor,
    slope,
    shift,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    INTERLEAVE: tl.constexpr,
    BY_OFFSETS: tl.constexpr,
    STEPS: tl.constexpr,
    BLEND: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Some tokens and some heads, those of keys behind those of queries; all tensors are contiguous."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    present = token < tokens
    position = _position(token, present, places, offsets, sequences, BY_OFFSETS, STEPS)
    frequency = _frequency(tl.arange(0, PAIRS), octaves, inverse_divisor, slope, shift, BLEND)
    angle = position[:, None] * frequency[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    for number in range(HEADS):
        head = tl.program_id(1) * HEADS + number
        if head < q_heads:
            rows = (token.to(tl.int64) * q_heads + head) * HEAD_DIM
            _turn(q, q_rope, rows, cos, sin, present, HALF, PAIRS, INTERLEAVE)
            if REST > 0:
                _copy(q, q_rope, rows, present, 2 * HALF, HEAD_DIM - 2 * HALF, REST)
        elif head < q_heads + k_heads:
            rows = (token.to(tl.int64) * k_heads + (head - q_heads)) * HEAD_DIM
            _turn(k, k_rope, rows, cos, sin, present, HALF, PAIRS, INTERLEAVE)
            if REST > 0:
                _copy(k, k_rope, rows, present, 2 * HALF, HEAD_DIM - 2 * HALF, REST)


def apply_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int,
    interleave: bool,
    rope_theta: float,
    scaling: Scaling,
    *,
    tiles: RopeTiling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates by position, sequence i being tokens indptr[i] … indptr[i + 1] - 1 at positions from offsets[i] on.

    Args:
        q, k: (tokens, heads, head_dim), bf16 or fp16, contiguous.
        indptr: (batch + 1,) int32.
        offsets: (batch,) int32.
        rotary_dim: the first so many dimensions are rotated; even.
        interleave: neighbours are pairs, instead of the members of two halves.
        rope_theta: frequencies are rope_theta^(-2 j / rotary_dim), before they are scaled.
        tiles: how to cut the work.

    Returns:
        q and k rotated, new tensors.

    Raises:
        ValueError: when a tensor has another format or shape.
    """
    if offsets.numel() + 1 != indptr.numel():
        shapes = f"indptr is {tuple(indptr.shape)} and offsets {tuple(offsets.shape)}"
        raise ValueError(f"{shapes}: give (batch + 1,) and (batch,)")
    return _launch(q, k, indptr, offsets, rotary_dim, interleave, rope_theta, scaling, tiles or RopeTiling())


def apply_rope_pos_ids(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int,
    interleave: bool,
    rope_theta: float,
    scaling: Scaling,
    *,
    tiles: RopeTiling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with the position of each token, (tokens,) int32."""
    if pos_ids.numel() != len(q):
        raise ValueError(f"pos_ids is {tuple(pos_ids.shape)}: give {(len(q),)}")
    return _launch(q, k, pos_ids, None, rotary_dim, interleave, rope_theta, scaling, tiles or RopeTiling())


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    places: torch.Tensor,
    offsets: torch.Tensor | None,
    rotary_dim: int,
    interleave: bool,
    rope_theta: float,
    scaling: Scaling,
    tiles: RopeTiling,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k, rotary_dim)
    tokens, q_heads, head_dim = q.shape
    k_heads, half, rest = k.shape[1], rotary_dim // 2, head_dim - rotary_dim
    q_rope, k_rope = torch.empty_like(q), torch.empty_like(k)
    sequences = 0 if offsets is None else offsets.numel()
    blend = scaling.high_freq_factor > scaling.low_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor if blend else 1.0
    grid = (triton.cdiv(tokens, tiles.tokens), triton.cdiv(q_heads + k_heads, tiles.heads))
    rotate_heads[grid](
        q,
        k,
        q_rope,
        k_rope,
        places,
        places if offsets is None else offsets,
        tokens,
        sequences,
        q_heads,
        k_heads,
        2 * math.log2(rope_theta) / rotary_dim,
        1 / scaling.divisor,
        scaling.old_context_len / (2 * math.pi * span),
        -scaling.low_freq_factor / span,
        HEAD_DIM=head_dim,
        HALF=half,
        PAIRS=triton.next_power_of_2(half),
        REST=triton.next_power_of_2(rest) if rest else 0,
        INTERLEAVE=interleave,
        BY_OFFSETS=offsets is not None,
        STEPS=sequences.bit_length(),
        BLEND=blend,
        TOKENS=tiles.tokens,
        HEADS=tiles.heads,
        num_warps=tiles.warps,
    )
    return q_rope, k_rope


def _check(q: torch.Tensor, k: torch.Tensor, rotary_dim: int) -> None:
    if q.dtype not in (torch.bfloat16, torch.float16) or k.dtype != q.dtype:
        raise ValueError(f"q is {q.dtype} and k {k.dtype}: give bfloat16 or float16 for both")
    if q.dim() != 3 or k.dim() != 3 or (len(q), q.shape[2]) != (len(k), k.shape[2]):
        raise ValueError(f"q is {tuple(q.shape)} and k {tuple(k.shape)}: give (tokens, heads, head_dim) for both")
    if not q.is_contiguous() or not k.is_contiguous():
        raise ValueError("q and k must be contiguous")
    if rotary_dim % 2 or not 0 < rotary_dim <= q.shape[2]:
        raise ValueError(f"rotary_dim is {rotary_dim}: give an even number up to {q.shape[2]}")
