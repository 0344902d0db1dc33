"""The order in which NVFP4's weights lie in memory, and its products sum over k: no decoded one moves between threads.

WGMMA takes the left operand from registers. Of 16 rows and 16 elements of k, the thread q of the quad g holds rows g
and g + 8, and of k 2q, 2q + 1, 2q + 8 and 2q + 9. Sums take any order, if both operands have the same. So of 64 columns
a thread has one block of 16 for each of its rows, which share a scale, and calls their elements what the hardware
wants: of the byte 8q + 4j + 2h + l of 32, the even one is at 16j + 8h + 2q + l, and the odd one 32 further.
Activations are stored in that order; w1's rows, too, so that the first product's result has it. If it is gated, rows g
are the linear part's and rows g + 8 the gate's of the same columns, which thus meet in one thread.

Weights of 16 rows and 64 columns are 512 bytes, a thread's 16 of them next to each other, and two bytes of scales, its
two rows': shared memory is read in the widest way and without conflicts, and global memory in long pieces.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 64
"""Columns within which the order differs; k is a multiple of it."""
ROWS = 16
"""Of weights that lie together."""


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


def inner_rows(columns: int, gated: bool) -> torch.Tensor:
    """Which row of w1 each one is, where it makes so many columns, or twice as many rows if gated."""
    row = torch.arange(columns * (2 if gated else 1))
    if not gated:
        return column_at.fn(row)
    return column_at.fn(row // 16 * 8 + row % 8) + row % 16 // 8 * columns


def laid_out(packed: torch.Tensor) -> torch.Tensor:
    """(rows, k / 2) bytes, as they lie in memory."""
    rows, length = packed.shape
    parts = packed.view(rows // ROWS, 2, 8, length // 32, 4, 4, 2)
    return parts.permute(0, 3, 2, 4, 5, 1, 6).reshape(rows, length)


def laid_out_scales(scale: torch.Tensor) -> torch.Tensor:
    """(rows, k / 16), likewise."""
    rows, blocks = scale.shape
    return scale.view(rows // ROWS, 2, 8, blocks // 4, 4).permute(0, 3, 2, 4, 1).reshape(rows, blocks)


@triton.jit
def ordered(elements):
    """(16 b, n / 2) elements from those of (b, n) words, as ``fp4.decode`` gives them."""
    BLOCKS: tl.constexpr = elements.shape[0]
    CHUNKS: tl.constexpr = elements.shape[1] // 128
    parts = elements.reshape(BLOCKS, CHUNKS, 8, 4, 2, 2, 2, 2, 2)
    return parts.permute(0, 7, 2, 1, 8, 4, 5, 3, 6).reshape(16 * BLOCKS, 64 * CHUNKS)
