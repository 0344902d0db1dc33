"""The order of weight rows that TensorRT-LLM's kernels read: shuffled inside blocks of 32, so that a thread's results
lie side by side. Elements and scales are shuffled alike; scales are put into 128x4 tiles afterwards.
"""

from __future__ import annotations

from flashinfer_perf.lazy import torch

BLOCK = 32
STRIDE = 8
"""Row r of a block goes to 8 * (r % 4) + r // 4: the block, seen as 8 rows of 4, is transposed."""


def shuffle_rows(rows: torch.Tensor) -> torch.Tensor:
    """(rows, …) with its rows shuffled; their number must be a multiple of 32."""
    return _transposed(rows, STRIDE)


def unshuffle_rows(shuffled: torch.Tensor) -> torch.Tensor:
    """The inverse."""
    return _transposed(shuffled, BLOCK // STRIDE)


def _transposed(rows: torch.Tensor, height: int) -> torch.Tensor:
    if len(rows) % BLOCK:
        raise ValueError(f"{len(rows)} rows cannot be shuffled: their number must be a multiple of {BLOCK}")
    return rows.unflatten(0, (-1, height, BLOCK // height)).transpose(1, 2).flatten(0, 2)
