"""The first product: tokens' rows gathered by expert, times w1, and the activation."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.activations import activate
from flashinfer_perf.kernels.moe.overlap import await_previous
from flashinfer_perf.kernels.moe.rows import to_e4m3
from flashinfer_perf.kernels.moe.tiles import block_of, of_size, place, scaled_products


@triton.jit
def _finish(
    up, gate, row, present, pair, topk_weights, out, out_scale, target, n,
    ACTIVATION: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Activation, rounding, and the way to memory."""
    if WEIGHTED:
        weight = tl.load(topk_weights + pair, present, 0.0)[None, :]
        up, gate = up * weight, gate * weight
    result = tl.trans(activate(up, gate, ACTIVATION))
    if out.dtype.element_ty == tl.float8e4nv:
        value = to_e4m3(result, tl.load(out_scale))
    else:
        value = result.to(out.dtype.element_ty)
    pointers = out + row[:, None].to(tl.int64) * n + target[None, :]
    tl.store(pointers, value, present[:, None] & (target < n)[None, :])


@triton.jit
def _tile(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, out_scale, order, topk_weights,
    expert, first, end, tile, n, k,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, EXTRA: tl.constexpr, FORMAT: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows from the first one, and EXTRA more, of those before the end."""
    row = first + tl.arange(0, ROWS)
    more = first + ROWS + tl.arange(0, EXTRA if EXTRA > 0 else 16)
    present, more_present = row < end, more < end
    pair, more_pair = tl.load(order + row, present, 0), tl.load(order + more, more_present, 0)
    target = tile * COLUMNS + tl.arange(0, COLUMNS)
    column = tl.minimum(target, n - 1)
    parts: tl.constexpr = 2 if GATED else 1
    up, gate, more_up, more_gate = scaled_products(
        x, x_scale, x_scale_stride, pair // TOP_K, present, more_pair // TOP_K, more_present, w, w_scale,
        w_scale_stride, w_global, expert, column, column + n if GATED else column, parts * n, k,
        FORMAT, GATED, EXTRA, DEPTH, WHOLE, UPCAST,
    )  # fmt: skip
    _finish(up, gate, row, present, pair, topk_weights, out, out_scale, target, n, ACTIVATION, WEIGHTED)
    if EXTRA > 0:
        _finish(
            more_up, more_gate, more, more_present, more_pair, topk_weights, out, out_scale, target, n,
            ACTIVATION, WEIGHTED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "neighbours"])
def first_product(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, out_scale, order, blocks, stride,
    topk_weights, n, k, tiles, neighbours,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, EXTRA: tl.constexpr, FORMAT: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """out[row] = activation of x[token of the row] times the expert's w1; more programs than tiles do no harm.

    Args:
        out: (rows, n) sorted; 16-bit, or E4M3 by the one ``out_scale``.
        order: which pair of a token and one of its experts a row is.
        n: columns of the result, after the activation; ``tiles`` of COLUMNS.
        neighbours: see ``tiles.place``.
        EXTRA: rows beyond ROWS that a block may have; see ``tiles.of_size``.
        WEIGHTED: products are multiplied by the pair's routing weight, before the activation.
    """
    await_previous(OVERLAPS)
    block, tile = place(tiles, neighbours)
    if block < tl.load(blocks):
        expert, first, end = block_of(blocks, block, stride)
        for size in tl.static_range(4 if EXTRA > 0 else 1):
            if of_size(end - first - ROWS, size, EXTRA):
                _tile(
                    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, out_scale, order,
                    topk_weights, expert, first, end, tile, n, k, TOP_K, ROWS, 0 if size == 0 else EXTRA >> 3 - size,
                    FORMAT, ACTIVATION, GATED, WEIGHTED, COLUMNS, DEPTH, WHOLE, UPCAST,
                )  # fmt: skip
