"""The last launch: a token's sum over its experts."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.overlap import await_previous


@triton.jit
def reduce_pairs(
    y, rows, topk_ids, topk_weights, out, columns, first_expert, experts,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, LISTED: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over k of weight[t, k] * y[t, k], in fp32, over the experts that are here.

    Args:
        y: (tokens * TOP_K, columns) 16-bit; rows of other experts are not read.
        rows: int32 (tokens * TOP_K,), if LISTED: y has (…, columns), and this says which row a pair is, -1 for others.
        WEIGHTED: otherwise weights are 1.
    """
    await_previous(OVERLAPS)
    token = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < columns
    total = tl.zeros((WIDTH,), tl.float32)
    for k in tl.static_range(TOP_K):
        pair = token * TOP_K + k
        if LISTED:
            row = tl.load(rows + pair)
            local = row >= 0
        else:
            row = pair
            expert = tl.load(topk_ids + pair) - first_expert
            local = (expert >= 0) & (expert < experts)
        present = tl.where(local, inside, False)  # Triton 3.9's interpreter takes no AND of the two for a mask
        value = tl.load(y + row.to(tl.int64) * columns + column, present, 0.0).to(tl.float32)
        total += value * tl.load(topk_weights + pair) if WEIGHTED else value
    tl.store(out + token.to(tl.int64) * columns + column, total.to(out.dtype.element_ty), inside)
