"""The loops over k of the grouped products: a tile of an expert's weights times some of its rows, in every format.

Weights are the left operand, so that a tile is (columns of the result, rows): the rows that few tokens have are the
short side, and weights may come from registers, where NVFP4 is decoded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.fp4 import decode
from flashinfer_perf.kernels.moe.fp4_order import ordered

K_BLOCK = tl.constexpr(128)
"""Elements of k that share a scale, in blocks."""


@triton.jit
def _dot(left, right, total, UPCAST: tl.constexpr):
    if UPCAST:
        result = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        result = tl.dot(left, right, total)
    return result


@triton.jit
def _load(pointers, present, offset, k, WHOLE: tl.constexpr):
    """A tile whose other axis is k, zeros beyond its end."""
    if WHOLE:
        return tl.load(pointers, present, 0.0)
    return tl.load(pointers, present & (offset < k), 0.0)


@triton.jit
def _weights(pointers, offset, k, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, offset < k, 0.0, eviction_policy="evict_first")


@triton.jit
def _row_pointers(x, row, depth, k):
    return x + row.to(tl.int64)[None, :] * k + depth[:, None]


@triton.jit
def plain(
    x, row, present, more, more_present, w, up_rows, gate_rows, k,
    GATED: tl.constexpr, EXTRA: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Products with elements as they are: up and gate of the rows, up and gate of more rows, fp32 (columns, rows) each.

    Args:
        x: (…, k) activations; ``row`` says which, ``present`` whether; likewise ``more``, which share the weights.
        w: one expert's weights, (…, k); ``up_rows`` and ``gate_rows`` say which.
        GATED: otherwise the gates are zeros.
        EXTRA: 0 for no more rows; results for them are zeros.
        WHOLE: k is a multiple of DEPTH.
    """
    depth = tl.arange(0, DEPTH)
    right, more_right = _row_pointers(x, row, depth, k), _row_pointers(x, more, depth, k)
    left = w + up_rows[:, None] * k + depth[None, :]
    left_gate = w + gate_rows[:, None] * k + depth[None, :]
    up = tl.zeros((up_rows.shape[0], row.shape[0]), tl.float32)
    more_up = tl.zeros((up_rows.shape[0], more.shape[0]), tl.float32)
    gate, more_gate = tl.zeros_like(up), tl.zeros_like(more_up)
    for start in range(0, k, DEPTH):
        offset = start + depth
        rows = _load(right + start, present[None, :], offset[:, None], k, WHOLE)
        weights = _weights(left + start, offset[None, :], k, WHOLE)
        up = _dot(weights, rows, up, UPCAST)
        if EXTRA > 0:
            more_rows = _load(more_right + start, more_present[None, :], offset[:, None], k, WHOLE)
            more_up = _dot(weights, more_rows, more_up, UPCAST)
        if GATED:
            weights = _weights(left_gate + start, offset[None, :], k, WHOLE)
            gate = _dot(weights, rows, gate, UPCAST)
            if EXTRA > 0:
                more_gate = _dot(weights, more_rows, more_gate, UPCAST)
    return up, gate, more_up, more_gate


@triton.jit
def in_blocks(
    x, x_scale, row, present, more, more_present, w, w_scale, up_rows, gate_rows, k,
    GATED: tl.constexpr, EXTRA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The same of FP8 in blocks of 128 x 128: a block's product is scaled and added in fp32.

    Args:
        x_scale: fp32 (…, k / 128).
        w_scale: fp32, the expert's (rows / 128, k / 128); all of a tile's rows are of one block.
    """
    depth = tl.arange(0, K_BLOCK)
    blocks = k // K_BLOCK
    right, more_right = _row_pointers(x, row, depth, k), _row_pointers(x, more, depth, k)
    left = w + up_rows[:, None] * k + depth[None, :]
    left_gate = w + gate_rows[:, None] * k + depth[None, :]
    scales, more_scales = x_scale + row.to(tl.int64) * blocks, x_scale + more.to(tl.int64) * blocks
    up_scales = w_scale + tl.min(up_rows) // K_BLOCK * blocks
    gate_scales = w_scale + tl.min(gate_rows) // K_BLOCK * blocks
    none = tl.zeros((up_rows.shape[0], row.shape[0]), tl.float32)
    more_none = tl.zeros((up_rows.shape[0], more.shape[0]), tl.float32)
    up, gate, more_up, more_gate = none, none, more_none, more_none
    for block in range(blocks):
        start = block * K_BLOCK
        rows, scale = tl.load(right + start, present[None, :], 0.0), tl.load(scales + block, present, 0.0)
        weights, factor = tl.load(left + start, eviction_policy="evict_first"), tl.load(up_scales + block)
        up += _dot(weights, rows, none, UPCAST) * (scale * factor)[None, :]
        if EXTRA > 0:
            more_rows = tl.load(more_right + start, more_present[None, :], 0.0)
            more_scale = tl.load(more_scales + block, more_present, 0.0)
            more_up += _dot(weights, more_rows, more_none, UPCAST) * (more_scale * factor)[None, :]
        if GATED:
            weights, factor = tl.load(left_gate + start, eviction_policy="evict_first"), tl.load(gate_scales + block)
            gate += _dot(weights, rows, none, UPCAST) * (scale * factor)[None, :]
            if EXTRA > 0:
                more_gate += _dot(weights, more_rows, more_none, UPCAST) * (more_scale * factor)[None, :]
    return up, gate, more_up, more_gate


@triton.jit
def _decoded(pointers, scales, word, pair, k, DTYPE: tl.constexpr, WHOLE: tl.constexpr, HARDWARE: tl.constexpr):
    """A tile of 16-bit weights; ``word`` and ``pair`` say where in 16 rows of k elements its words and scales are."""
    if WHOLE:
        packed = tl.load(pointers, eviction_policy="evict_first")
        scale = tl.load(scales, eviction_policy="evict_first")
    else:
        packed = tl.load(pointers, (word < 2 * k)[None, :], 0, eviction_policy="evict_first")
        scale = tl.load(scales, (pair < k // 2)[None, :], 0, eviction_policy="evict_first")
    return ordered(decode(packed, scale, DTYPE, HARDWARE))


@triton.jit
def _blocks_of(columns, GATED: tl.constexpr):
    """Numbers of the blocks of 16 rows that columns of the result, next to each other, take: of 8 of them if gated."""
    WIDTH: tl.constexpr = 8 if GATED else 16
    return tl.min(columns.reshape(columns.shape[0] // WIDTH, WIDTH), axis=1) // WIDTH


@triton.jit
def _parted(products, GATED: tl.constexpr):
    """Up and gate of products, (rows of w, rows): of 16, 8 are of each, and a thread has both of a column."""
    if GATED:
        ROWS: tl.constexpr = products.shape[0] // 2
        MOST: tl.constexpr = products.shape[1]
        parts = products.reshape(ROWS // 8, 2, 8, MOST).permute(0, 2, 3, 1)
        half, other = tl.split(parts)
        up, gate = half.reshape(ROWS, MOST), other.reshape(ROWS, MOST)
    else:
        up, gate = products, tl.zeros_like(products)
    return up, gate


@triton.jit
def fp4(
    x, row, present, more, more_present, w, w_scale, columns, k,
    GATED: tl.constexpr, EXTRA: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The same of NVFP4 weights and 16-bit rows in the order of ``fp4_order``; products are to be scaled, ``fp4``.

    Args:
        w: int32, the expert's (blocks of 16 rows, 2 k), words for the dtype of x.
        w_scale: uint16, the expert's (blocks of 16 rows, k / 2).
        columns: of the result.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ROWS: tl.constexpr = columns.shape[0] * (2 if GATED else 1)
    depth, word, pair = tl.arange(0, DEPTH), tl.arange(0, 2 * DEPTH), tl.arange(0, DEPTH // 2)
    right, more_right = _row_pointers(x, row, depth, k), _row_pointers(x, more, depth, k)
    blocks = _blocks_of(columns, GATED)[:, None]
    left, scales = w + blocks * (2 * k) + word[None, :], w_scale + blocks * (k // 2) + pair[None, :]
    total = tl.zeros((ROWS, row.shape[0]), tl.float32)
    more_total = tl.zeros((ROWS, more.shape[0]), tl.float32)
    for start in range(0, k, DEPTH):
        first, half = start * 2, start // 2
        rows = _load(right + start, present[None, :], (start + depth)[:, None], k, WHOLE)
        weights = _decoded(left + first, scales + half, first + word, half + pair, k, DTYPE, WHOLE, not UPCAST)
        total = _dot(weights, rows, total, UPCAST)
        if EXTRA > 0:
            more_rows = _load(more_right + start, more_present[None, :], (start + depth)[:, None], k, WHOLE)
            more_total = _dot(weights, more_rows, more_total, UPCAST)
    up, gate = _parted(total, GATED)
    more_up, more_gate = _parted(more_total, GATED)
    return up, gate, more_up, more_gate
