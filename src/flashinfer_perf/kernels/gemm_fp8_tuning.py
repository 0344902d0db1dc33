"""How the group-wise FP8 products cut their work where they have no kernel for the GPU."""

from __future__ import annotations

from typing import NamedTuple


class GemmTiling(NamedTuple):
    """A program's tile; see ``gemm_fp8_tiles.gemm_tiles``."""

    rows: int
    """Of the output: a power of two, 64 at least for Hopper's tensor cores."""
    columns: int
    """A power of two, 128 at most: every 128 have scales of their own."""
    warps: int
    stages: int
    """Blocks of k on their way while one is multiplied."""


FEW_ROWS = 64
FEW = GemmTiling(rows=64, columns=32, warps=4, stages=5)
"""For up to ``FEW_ROWS`` rows in a group: narrow, so that reading the weights is spread over the GPU."""
MANY = GemmTiling(rows=64, columns=128, warps=4, stages=3)


def tiling(rows: int) -> GemmTiling:
    """For products of so many rows, in each group."""
    return FEW if rows <= FEW_ROWS else MANY
