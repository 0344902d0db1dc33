"""The orders of weight rows that TensorRT-LLM's kernels read: gate and up rows in turn, and rows shuffled inside blocks
so that a thread's results lie side by side. Elements and scales are ordered alike; scales are put into 128x4 tiles
afterwards.
"""

from __future__ import annotations

from flashinfer_perf.lazy import torch

BLOCK = 32
NARROW_BLOCK = 16
"""Of kernels whose epilogue has 64 rows; others have 128."""
STRIDE = 8
"""Row r of a block of B goes to 8 * (r % (B / 8)) + r // (B / 8): the block, seen as 8 rows, is transposed."""
MAJOR_K_BLOCK = 128
"""Columns of FP8 in a block of the layout BlockMajorK."""


def shuffle_rows(rows: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """(rows, …) with its rows shuffled; their number must be a multiple of the block."""
    return _transposed(rows, block, STRIDE)


def unshuffle_rows(shuffled: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """The inverse."""
    return _transposed(shuffled, block, block // STRIDE)


def interleave_halves(rows: torch.Tensor) -> torch.Tensor:
    """(2 n, …) with the row n + i behind the row i: up and gate of one column side by side."""
    return rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def block_major(rows: torch.Tensor) -> torch.Tensor:
    """(rows, k) as (k / 128, rows, 128), contiguous: the layout that TensorRT-LLM calls BlockMajorK."""
    return rows.unflatten(1, (-1, MAJOR_K_BLOCK)).transpose(0, 1).contiguous()


def _transposed(rows: torch.Tensor, block: int, height: int) -> torch.Tensor:
    if len(rows) % block:
        raise ValueError(f"{len(rows)} rows cannot be shuffled: their number must be a multiple of {block}")
    return rows.unflatten(0, (-1, height, block // height)).transpose(1, 2).flatten(0, 2)
