"""Tokens' rows, quantised or as they are, where their pairs are: sorted by expert, for the copy engine."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.rows import BLOCK, quantised


@triton.jit
def _quantised_before(value, x_scale, x_scale_stride, token, blocks, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    if BLOCKS:
        block = tl.arange(0, WIDTH // BLOCK)
        own = tl.load(x_scale + token * blocks + block, block < blocks, 0.0)
    else:
        own = tl.load(x_scale + token * x_scale_stride)
    return value, own


@triton.jit
def spread_rows(
    x, x_scale, x_scale_stride, rows, topk_weights, out, out_scale, columns,
    TOP_K: tl.constexpr, FORM: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A token a program.

    Args:
        x: (tokens, columns) bf16 or fp16; or E4M3, with ``x_scale``, fp32: (tokens, columns / 128) in blocks, otherwise
            one of a token or, with stride 0, one of all. With the form given, that is also the scale of 16-bit x.
        rows: int32 (tokens * TOP_K,): which row a pair is; none if negative.
        out: (…, columns), E4M3, or of x's format where that is not quantised.
        out_scale: fp32 (…, columns / 128) in blocks, otherwise one of a row: 1 where it is not quantised.
        FORM: given, token or blocks; not quantised if empty.
        WEIGHTED: scales are multiplied by the pair's routing weight, which is the same as to multiply values.
        WIDTH: power of two, not less than ``columns`` nor 128.
    """
    token = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside, blocks = column < columns, columns // BLOCK
    value = tl.load(x + token.to(tl.int64) * columns + column, inside, 0.0)
    BLOCKS: tl.constexpr = FORM == "blocks"
    if x.dtype.element_ty == tl.float8e4nv:
        elements, own = _quantised_before(value, x_scale, x_scale_stride, token, blocks, BLOCKS, WIDTH)
    elif FORM == "":
        elements, own = value, 1.0
    else:
        elements, own = quantised(value, x_scale, FORM, WIDTH)
    for k in tl.static_range(TOP_K):
        pair = token * TOP_K + k
        row = tl.load(rows + pair).to(tl.int64)
        if row >= 0:
            scale = own * tl.load(topk_weights + pair) if WEIGHTED else own
            tl.store(out + row * columns + column, elements, inside)
            if BLOCKS:
                block = tl.arange(0, WIDTH // BLOCK)
                tl.store(out_scale + row * blocks + block, scale, block < blocks)
            else:
                tl.store(out_scale + row, scale)
