"""What the two grouped products have in common: which tile a program has, and its products, scaled."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe import products
from flashinfer_perf.kernels.moe.fp4 import REMAINDER

fp4, in_blocks, plain = products.fp4, products.in_blocks, products.plain


@triton.jit
def place(tiles, neighbours):
    """A program's block of rows and tile of columns: blocks next to each other, often of one expert, take the same
    columns at the same time, so that its weights are read once.
    """
    program = tl.program_id(0)
    band = program // (neighbours * tiles)
    within = program % (neighbours * tiles)
    return band * neighbours + within % neighbours, within // neighbours


@triton.jit
def block_of(blocks, block, stride):
    """A block's expert, its first row, and the end of the expert's rows."""
    entry = blocks + 1 + block
    return tl.load(entry), tl.load(entry + stride), tl.load(entry + 2 * stride)


@triton.jit
def of_size(beyond, SIZE: tl.constexpr, EXTRA: tl.constexpr):
    """Whether a block with so many rows beyond the usual ones takes tiles of size 0, 1, 2 or 3: those that have none, a
    quarter, half or all of the extra rows. It takes the smallest that holds its rows.
    """
    if EXTRA == 0:
        result = beyond == beyond
    elif SIZE == 0:
        result = beyond <= 0
    elif SIZE == 3:
        result = beyond > EXTRA // 2
    else:
        result = (beyond <= (EXTRA >> 3 - SIZE)) & (beyond > (0 if SIZE == 1 else EXTRA // 4))
    return result


@triton.jit
def scaled_products(
    x, x_scale, x_scale_stride, source, present, more, more_present, w, w_scale, w_scale_stride, w_global, expert,
    up_rows, gate_rows, n, k,
    FORMAT: tl.constexpr, GATED: tl.constexpr, EXTRA: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """True products, fp32 (columns, rows) each; see ``products.plain``.

    Args:
        x_scale_stride: between rows' scales where FORMAT is scaled; 0 for one of all.
        source, more: rows of x.
        w: all experts', (…, n, k); likewise ``w_scale`` and ``w_global``.
        w_scale_stride: between those of an expert's channels where FORMAT is scaled; 0 for one of the expert.
        FORMAT: 16-bit, scaled, blocks or nvfp4.
    """
    which = expert.to(tl.int64)  # a few hundred experts have more weights than 2^31
    if FORMAT == "nvfp4":
        w += which * (n // 64) * 8 * k  # n is a multiple of 64, so that the compiler sees where rows begin
        w_scale += which * (n // 64) * 2 * k
        up, gate, more_up, more_gate = fp4(
            x, source, present, more, more_present, w, w_scale, up_rows, k, GATED, EXTRA, DEPTH, WHOLE, UPCAST
        )
        factor = REMAINDER / tl.load(w_global + expert)
        up, gate, more_up, more_gate = up * factor, gate * factor, more_up * factor, more_gate * factor
    elif FORMAT == "blocks":
        w += which * n * k
        w_scale += which * (n // 128) * (k // 128)
        up, gate, more_up, more_gate = in_blocks(
            x, x_scale, source, present, more, more_present, w, w_scale, up_rows, gate_rows, k, GATED, EXTRA, UPCAST
        )
    else:
        w += which * n * k
        up, gate, more_up, more_gate = plain(
            x, source, present, more, more_present, w, up_rows, gate_rows, k, GATED, EXTRA, DEPTH, WHOLE, UPCAST
        )
        if FORMAT == "scaled":
            first = w_scale + which * (n if w_scale_stride else 1)
            up_scale = tl.load(first + up_rows * w_scale_stride)[:, None]
            gate_scale = tl.load(first + gate_rows * w_scale_stride)[:, None]
            scale = tl.load(x_scale + source * x_scale_stride, present, 0.0)[None, :]
            more_scale = tl.load(x_scale + more * x_scale_stride, more_present, 0.0)[None, :]
            up, gate = up * up_scale * scale, gate * gate_scale * scale
            more_up, more_gate = more_up * up_scale * more_scale, more_gate * gate_scale * more_scale
    return up, gate, more_up, more_gate
