"""The order in which NVFP4's products sum over k: one in which no decoded weight moves between threads.

WGMMA takes the left operand from registers. Of 16 elements of k in a row, the thread number q of a quad holds those at
2q, 2q + 1, 2q + 8 and 2q + 9. Sums take any order, if both operands have the same. So a thread reads the 8 bytes of one
block of 16 weights, which share a scale, and calls their elements what the hardware wants: of 64 columns, in 32 bytes
8q + 4j + 2h + l, the even ones are at 16j + 8h + 2q + l, and the odd ones 32 further. Activations are stored in that
order; to weights it is but a name, which costs no instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 64
"""Columns within which the order differs; k is a multiple of it."""


@triton.jit
def position_of(column):
    """Where a column of activations is stored."""
    byte = column % 64 // 2
    within = byte % 8 // 4 * 16 + byte % 4 // 2 * 8 + byte // 8 * 2 + byte % 2
    return column // 64 * 64 + column % 2 * 32 + within


@triton.jit
def column_at(position):
    """The column that is stored at a position."""
    within = position % 32
    byte = within % 8 // 2 * 8 + within // 16 * 4 + within % 16 // 8 * 2 + within % 2
    return position // 64 * 64 + 2 * byte + position % 64 // 32


@triton.jit
def ordered(even, odd):
    """(rows, n) from the even and the odd elements of (rows, n / 2) bytes."""
    ROWS: tl.constexpr = even.shape[0]
    BYTES: tl.constexpr = even.shape[1]
    elements = tl.join(even, odd).reshape(ROWS, BYTES // 32, 4, 2, 2, 2, 2)
    return elements.permute(0, 1, 6, 3, 4, 2, 5).reshape(ROWS, 2 * BYTES)
