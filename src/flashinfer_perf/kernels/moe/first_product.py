"""The first product: tokens' rows gathered by expert, times w1, and the activation."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.activations import activate
from flashinfer_perf.kernels.moe.fp4_order import column_at
from flashinfer_perf.kernels.moe.rows import to_e4m3
from flashinfer_perf.kernels.moe.tiles import place, rows_of, scaled_products


@triton.jit
def first_product(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, out_scale, order, blocks, topk_weights,
    n, k, tiles,
    TOP_K: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, WEIGHTED: tl.constexpr, FP4_ORDER: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    WHOLE: tl.constexpr, NEIGHBOURS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[row] = activation of x[token of the row] times the expert's w1; more programs than tiles do no harm.

    Args:
        out: (rows, n) sorted; 16-bit, or E4M3 by the one ``out_scale``.
        order: which pair of a token and one of its experts a row is.
        n: columns of the result, after the activation; ``tiles`` of COLUMNS.
        WEIGHTED: products are multiplied by the pair's routing weight, before the activation.
        FP4_ORDER: columns of the result are stored in that order.
    """
    block, tile = place(tiles, NEIGHBOURS)
    if block < tl.load(blocks):
        expert, row, present = rows_of(blocks, block, STRIDE, ROWS)
        pair = tl.load(order + row, present, 0)
        target = tile * COLUMNS + tl.arange(0, COLUMNS)
        column = column_at(target) if FP4_ORDER else target
        w_row = tl.minimum(column, n - 1)
        parts: tl.constexpr = 2 if GATED else 1
        up, gate = scaled_products(
            x, x_scale, x_scale_stride, pair // TOP_K, present, w, w_scale, w_scale_stride, w_global, expert,
            w_row, w_row + n if GATED else w_row, parts * n, k, FORMAT, GATED, DEPTH, WHOLE, UPCAST,
        )  # fmt: skip
        if WEIGHTED:
            weight = tl.load(topk_weights + pair, present, 0.0)[None, :]
            up, gate = up * weight, gate * weight
        result = tl.trans(activate(up, gate, ACTIVATION))
        pointers = out + row[:, None].to(tl.int64) * n + target[None, :]
        if out.dtype.element_ty == tl.float8e4nv:
            value = to_e4m3(result, tl.load(out_scale))
        else:
            value = result.to(out.dtype.element_ty)
        tl.store(pointers, value, present[:, None] & (target < n)[None, :])
