"""What the two grouped products have in common: which tile a program has, and its products, scaled."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe import products
from flashinfer_perf.kernels.moe.fp4 import REMAINDER

fp4, in_blocks, plain = products.fp4, products.in_blocks, products.plain


@triton.jit
def place(tiles, NEIGHBOURS: tl.constexpr):
    """A program's block of rows and tile of columns: blocks next to each other, often of one expert, take the same
    columns at the same time, so that its weights are read once.
    """
    program = tl.program_id(0)
    band = program // (NEIGHBOURS * tiles)
    within = program % (NEIGHBOURS * tiles)
    return band * NEIGHBOURS + within % NEIGHBOURS, within // NEIGHBOURS


@triton.jit
def rows_of(blocks, block, STRIDE: tl.constexpr, ROWS: tl.constexpr):
    """A block's expert, its rows, and which of them there are."""
    entry = blocks + 1 + block
    row = tl.load(entry + STRIDE) + tl.arange(0, ROWS)
    return tl.load(entry), row, row < tl.load(entry + 2 * STRIDE)


@triton.jit
def scaled_products(
    x, x_scale, x_scale_stride, source, present, w, w_scale, w_scale_stride, w_global, expert, up_rows, gate_rows,
    n, k, FORMAT: tl.constexpr, GATED: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """True products, up and gate, fp32 (columns, rows) each; see ``products``.

    Args:
        x_scale_stride: between rows' scales where FORMAT is scaled; 0 for one of all.
        source: rows of x.
        w: all experts', (…, n, k); likewise ``w_scale`` and ``w_global``.
        w_scale_stride: between those of an expert's channels where FORMAT is scaled; 0 for one of the expert.
        FORMAT: 16-bit, scaled, blocks or nvfp4.
    """
    which = expert.to(tl.int64)  # a few hundred experts have more weights than 2^31
    if FORMAT == "nvfp4":
        w += which * (n // 64) * 32 * k  # n is a multiple of 64, so that the compiler sees where rows begin
        w_scale += which * (n // 64) * 4 * k
        up, gate = fp4(x, source, present, w, w_scale, up_rows, gate_rows, k, GATED, DEPTH, WHOLE, UPCAST)
        factor = REMAINDER / tl.load(w_global + expert)
        up, gate = up * factor, gate * factor
    elif FORMAT == "blocks":
        w += which * n * k
        w_scale += which * (n // 128) * (k // 128)
        up, gate = in_blocks(x, x_scale, source, present, w, w_scale, up_rows, gate_rows, k, GATED, UPCAST)
    else:
        w += which * n * k
        up, gate = plain(x, source, present, w, up_rows, gate_rows, k, GATED, DEPTH, WHOLE, UPCAST)
        if FORMAT == "scaled":
            row_scale = tl.load(x_scale + source * x_scale_stride, present, 0.0)[None, :]
            first = w_scale + which * (n if w_scale_stride else 1)
            up *= tl.load(first + up_rows * w_scale_stride)[:, None] * row_scale
            gate *= tl.load(first + gate_rows * w_scale_stride)[:, None] * row_scale
    return up, gate
