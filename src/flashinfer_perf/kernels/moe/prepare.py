"""The first launch: one program sorts, the others convert the tokens' rows meanwhile."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.overlap import await_previous
from flashinfer_perf.kernels.moe.rows import SMALLEST, convert_row
from flashinfer_perf.kernels.moe.sorting import sort_pairs


@triton.jit(do_not_specialize=["stride"])
def prepare(
    topk_ids, order, offsets, cursors, blocks, pairs, first_expert, experts, stride, scales, x, x_out, x_scale, columns,
    ROWS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, FORM: tl.constexpr,
    WIDTH: tl.constexpr, OVERLAPS: tl.constexpr, ALIGNED: tl.constexpr = 1, INVERSE: tl.constexpr = False,
):  # fmt: skip
    """1 program, and one for every token where there is a FORM (see ``rows.convert_row``).

    Args:
        scales: (2,) fp32 out: the smallest ones, which later launches raise to those of whole tensors.
    """
    await_previous(OVERLAPS)
    program = tl.program_id(0)
    if program == 0:
        tl.store(scales + tl.arange(0, 2), tl.zeros((2,), tl.float32) + SMALLEST)
        sort_pairs(
            topk_ids, order, offsets, cursors, blocks, pairs, first_expert, experts, stride, ROWS, BINS, CHUNK, ALIGNED,
            INVERSE,
        )  # fmt: skip
    elif FORM != "":
        convert_row(x, x_out, x_scale, program - 1, columns, FORM, WIDTH)
