"""Rows of activations brought into the form that a product reads: FP8 with some scale, or NVFP4's order."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.fp4_order import position_of

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
    elif FORM == "given":
        tl.store(out + at + column, to_e4m3(value.to(tl.float32), tl.load(scale)), inside)
    elif FORM == "token":
        wide = value.to(tl.float32)
        own = _scale_of(tl.max(tl.abs(wide)))
        tl.store(scale + row, own)
        tl.store(out + at + column, to_e4m3(wide, own), inside)
    else:
        wide = value.to(tl.float32).reshape(WIDTH // BLOCK, BLOCK)
        own = _scale_of(tl.max(tl.abs(wide), axis=1))
        block = tl.arange(0, WIDTH // BLOCK)
        tl.store(scale + row.to(tl.int64) * (columns // BLOCK) + block, own, block < columns // BLOCK)
        tl.store(out + at + column, to_e4m3(wide, own[:, None]).reshape(WIDTH), inside)


@triton.jit
def convert_rows(x, out, scale, count, columns, FORM: tl.constexpr, WIDTH: tl.constexpr):
    """A row a program, as many as ``count`` points at."""
    row = tl.program_id(0)
    if row < tl.load(count):
        convert_row(x, out, scale, row, columns, FORM, WIDTH)


@triton.jit
def raise_scale(x, scale, count, columns, WIDTH: tl.constexpr):
    """Raises one fp32 scale to what a row needs, a row a program: afterwards it is that of all rows."""
    row = tl.program_id(0)
    if row < tl.load(count):
        column = tl.arange(0, WIDTH)
        value = tl.load(x + row.to(tl.int64) * columns + column, column < columns, 0.0).to(tl.float32)
        tl.atomic_max(scale, _scale_of(tl.max(tl.abs(value))), sem="relaxed")
