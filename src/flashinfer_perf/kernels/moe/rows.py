"""Rows of activations brought into the form that a product reads: FP8 with some scale, or NVFP4's order."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.fp4_order import position_of
from flashinfer_perf.kernels.moe.overlap import await_previous

LARGEST = tl.constexpr(448.0)
"""Of E4M3."""
SMALLEST = tl.constexpr(1.1754943508222875e-38)
"""A scale is a normal fp32 number, even of zeros."""
BLOCK = tl.constexpr(128)
"""Columns that share a scale, in blocks."""


@triton.jit
def to_e4m3(value, scale):
    """Nearest E4M3 numbers of fp32 divided by a scale, saturating."""
    return tl.clamp(tl.div_rn(value, scale), -LARGEST, LARGEST).to(tl.float8e4nv)


@triton.jit
def _scale_of(largest):
    return tl.maximum(tl.div_rn(largest, LARGEST), SMALLEST)


@triton.jit
def quantised(value, scale, FORM: tl.constexpr, WIDTH: tl.constexpr):
    """A row's nearest E4M3 numbers, (WIDTH,), and what they are scaled by: fp32, (WIDTH / 128,) in blocks.

    Args:
        FORM: given, by ``scale``; token or blocks.
    """
    wide = value.to(tl.float32)
    if FORM == "given":
        own = tl.load(scale)
        elements = to_e4m3(wide, own)
    elif FORM == "token":
        own = _scale_of(tl.max(tl.abs(wide)))
        elements = to_e4m3(wide, own)
    else:
        blocks = wide.reshape(WIDTH // BLOCK, BLOCK)
        own = _scale_of(tl.max(tl.abs(blocks), axis=1))
        elements = to_e4m3(blocks, own[:, None]).reshape(WIDTH)
    return elements, own


@triton.jit
def convert_row(x, out, scale, row, columns, FORM: tl.constexpr, WIDTH: tl.constexpr):
    """One row.

    Args:
        x: (rows, columns) bf16 or fp16.
        out: (rows, columns) of E4M3, or of x's format where the form is fp4 order.
        scale: fp32; (1,) in where it is given, (rows,) out where each token has one, (rows, columns / 128) out for
            blocks.
        FORM: fp4 order, given, token or blocks.
        WIDTH: power of two, not less than ``columns`` nor 128.
    """
    column = tl.arange(0, WIDTH)
    inside = column < columns
    at = row.to(tl.int64) * columns
    value = tl.load(x + at + column, inside, 0.0)
    if FORM == "fp4 order":
        tl.store(out + at + position_of(column), value, inside)
    else:
        elements, own = quantised(value, scale, FORM, WIDTH)
        tl.store(out + at + column, elements, inside)
        if FORM == "token":
            tl.store(scale + row, own)
        elif FORM == "blocks":
            block = tl.arange(0, WIDTH // BLOCK)
            tl.store(scale + row.to(tl.int64) * (columns // BLOCK) + block, own, block < columns // BLOCK)


@triton.jit
def _row_of_program(rows, LISTED: tl.constexpr):
    """The program's row, and whether there is one; see ``convert_rows``."""
    program = tl.program_id(0)
    if LISTED:
        row = tl.load(rows + program)
        present = row >= 0
    else:
        row = program
        present = row < tl.load(rows)
    return row, present


@triton.jit
def convert_rows(
    x, out, scale, rows, columns, FORM: tl.constexpr, WIDTH: tl.constexpr, LISTED: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A row a program: as many of the first ones as ``rows`` points at, or if LISTED those that it lists, but for
    negative ones.
    """
    await_previous(OVERLAPS)
    row, present = _row_of_program(rows, LISTED)
    if present:
        convert_row(x, out, scale, row, columns, FORM, WIDTH)


@triton.jit
def raise_scale(
    x, scale, rows, columns, WIDTH: tl.constexpr, LISTED: tl.constexpr, OVERLAPS: tl.constexpr
):  # fmt: skip
    """Raises one fp32 scale to what a row needs, a row a program: afterwards it is that of all rows."""
    await_previous(OVERLAPS)
    row, present = _row_of_program(rows, LISTED)
    if present:
        column = tl.arange(0, WIDTH)
        value = tl.load(x + row.to(tl.int64) * columns + column, column < columns, 0.0).to(tl.float32)
        tl.atomic_max(scale, _scale_of(tl.max(tl.abs(value))), sem="relaxed")
