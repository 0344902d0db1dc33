"""The second product: sorted rows times w2, back to where their pairs are."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.overlap import await_previous
from flashinfer_perf.kernels.moe.tiles import block_of, of_size, place, scaled_products


@triton.jit
def _finish(result, row, present, out, order, column, n):
    """Rounding, and the way to memory."""
    pair = tl.load(order + row, present, 0)
    pointers = out + pair[:, None].to(tl.int64) * n + column[None, :]
    value = tl.trans(result).to(out.dtype.element_ty)
    tl.store(pointers, value, present[:, None] & (column < n)[None, :])


@triton.jit
def _tile(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, order, expert, first, end, tile, n, k,
    ROWS: tl.constexpr, EXTRA: tl.constexpr, FORMAT: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows from the first one, and EXTRA more, of those before the end."""
    row = first + tl.arange(0, ROWS)
    more = first + ROWS + tl.arange(0, EXTRA if EXTRA > 0 else 16)
    present, more_present = row < end, more < end
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    w_row = tl.minimum(column, n - 1)
    result, _, more_result, _ = scaled_products(
        x, x_scale, x_scale_stride, row, present, more, more_present, w, w_scale, w_scale_stride, w_global, expert,
        w_row, w_row, n, k, FORMAT, False, EXTRA, DEPTH, WHOLE, UPCAST,
    )  # fmt: skip
    _finish(result, row, present, out, order, column, n)
    if EXTRA > 0:
        _finish(more_result, more, more_present, out, order, column, n)


@triton.jit(do_not_specialize=["stride", "neighbours"])
def second_product(
    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, order, blocks, stride, n, k, tiles,
    neighbours,
    ROWS: tl.constexpr, EXTRA: tl.constexpr, FORMAT: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """out[pair of the row] = x[row] times the expert's w2; more programs than tiles do no harm.

    Args:
        x: (rows, k) sorted.
        out: (pairs, n) 16-bit.
        order: which pair a row is.
        n: columns of the result; ``tiles`` of COLUMNS.
        neighbours: see ``tiles.place``.
        EXTRA: as in ``first_product``.
    """
    await_previous(OVERLAPS)
    block, tile = place(tiles, neighbours)
    if block < tl.load(blocks):
        expert, first, end = block_of(blocks, block, stride)
        for size in tl.static_range(4 if EXTRA > 0 else 1):
            if of_size(end - first - ROWS, size, EXTRA):
                _tile(
                    x, x_scale, x_scale_stride, w, w_scale, w_scale_stride, w_global, out, order, expert, first, end,
                    tile, n, k, ROWS, 0 if size == 0 else EXTRA >> 3 - size, FORMAT, COLUMNS, DEPTH, WHOLE, UPCAST,
                )  # fmt: skip
