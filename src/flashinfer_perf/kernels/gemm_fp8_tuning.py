"""How the group-wise FP8 products cut their work, by GPU and by rows."""

from __future__ import annotations

from typing import NamedTuple

Capability = tuple[int, int]


class GemmTiling(NamedTuple):
    """A program's tile and how it is computed; see ``gemm_fp8_tiles.gemm_tiles``."""

    rows: int
    """Of the output: a power of two, 64 at least for Hopper's tensor cores."""
    columns: int
    """A power of two: 128 at most, or 256 with ``overlap``, since every 128 have scales of their own."""
    warps: int
    stages: int
    """Blocks of k on their way while one is multiplied."""
    overlap: bool = False
    """Adds products of one half of a tile while those of the other are computed."""
    specialize: bool = False
    """Warps of their own load for those that multiply; on compute capability 9.0, with 4 warps."""
    neighbours: int = 8
    """Rows of tiles that are walked down before the next column, so that both operands stay in L2."""
    programs: int = 1
    """To a multiprocessor, each of which takes tile after tile; 0 for as many as there are tiles."""
    registers: int | None = None
    """Of a thread, at most: 128 let two programs of 8 warps onto a multiprocessor."""


DEFAULT = GemmTiling(rows=64, columns=128, warps=8, stages=3, programs=0)
FEW_ROWS = 64
BY_CAPABILITY: dict[Capability, tuple[GemmTiling, GemmTiling]] = {
    (9, 0): (
        GemmTiling(rows=64, columns=128, warps=4, stages=4, programs=2),
        GemmTiling(rows=128, columns=128, warps=8, stages=4),
    ),
}
"""For up to ``FEW_ROWS`` rows in a group, and for more."""


def tiling(capability: Capability, rows: int) -> GemmTiling:
    """For products of so many rows, in each group, on a GPU of that compute capability."""
    few, many = BY_CAPABILITY.get(capability, (DEFAULT, DEFAULT))
    return few if rows <= FEW_ROWS else many
