"""The second product: sorted rows times w2, back to where their pairs are."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.tiles import place, rows_of, scaled_products


@triton.jit
def second_product(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, order, blocks, n, k, tiles,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    WHOLE: tl.constexpr, NEIGHBOURS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[pair of the row] = x[row] times the expert's w2; more programs than tiles do no harm.

    Args:
        x: (rows, k) sorted.
        out: (pairs, n) 16-bit.
        order: which pair a row is.
        n: columns of the result; ``tiles`` of COLUMNS.
    """
    block, tile = place(tiles, NEIGHBOURS)
    if block < tl.load(blocks):
        expert, row, present = rows_of(blocks, block, STRIDE, ROWS)
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        w_row = tl.minimum(column, n - 1)
        result, _ = scaled_products(
            x, x_scale, x_scale_stride, row, present, w, w_scale, w_scale_stride, w_global, expert, w_row, w_row,
            n, k, FORMAT, False, DEPTH, WHOLE, UPCAST,
        )  # fmt: skip
        pair = tl.load(order + row, present, 0)
        pointers = out + pair[:, None].to(tl.int64) * n + column[None, :]
        value = tl.trans(result).to(out.dtype.element_ty)
        tl.store(pointers, value, present[:, None] & (column < n)[None, :])
