"""How a mixture's products cut their work, by format, rows of an expert and GPU."""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.kernels.moe.weights import ExpertFormat

Capability = tuple[int, int]


class ProductTiles(NamedTuple):
    """One product's; see ``first_product`` and ``second_product``."""

    columns: int
    """Of the result: a power of two; 128 at most for block scales. A gated first product has twice as many of w1."""
    depth: int
    """Elements of k at once, a power of two; 128 for block scales, whatever this says."""
    warps: int
    stages: int
    """Steps of k on their way while one is multiplied."""


class Tiles(NamedTuple):
    rows: int
    """Of one expert, in a block: a power of two, 16 at least."""
    neighbours: int
    """Blocks that take the same columns at the same time."""
    first: ProductTiles
    second: ProductTiles
    extra: int = 0
    """Rows that a block may have beyond those: a power of two, 64 at least, or 0. Weights are brought in once for all
    of a block's rows, and products are of few more rows than there are: a quarter, half or all of the extra ones.
    """


class Tuned(NamedTuple):
    most_rows: float
    """Of an expert, on average over all, that these are for."""
    tiles: Tiles


_FEW = ProductTiles(columns=64, depth=128, warps=4, stages=3)
_FEW_FP4 = ProductTiles(columns=64, depth=256, warps=4, stages=3)
_MANY = ProductTiles(columns=64, depth=64, warps=4, stages=3)
_MANY_FP8 = ProductTiles(columns=64, depth=128, warps=4, stages=3)
_ANY = float("inf")
_STREAM = (Tuned(4, Tiles(16, 8, _FEW, _FEW)), Tuned(24, Tiles(32, 8, _FEW, _FEW)))
"""For few rows: the time is that of reading weights, so that rows fill no more than tensor cores take at least."""
_STREAM_FP4 = (Tuned(4, Tiles(16, 8, _FEW_FP4, _FEW_FP4)), Tuned(24, Tiles(32, 8, _FEW_FP4, _FEW_FP4)))
DEFAULT: dict[ExpertFormat, tuple[Tuned, ...]] = {
    ExpertFormat.BF16: (*_STREAM, Tuned(_ANY, Tiles(64, 8, _MANY, _MANY))),
    ExpertFormat.FP8_TENSOR: (*_STREAM, Tuned(_ANY, Tiles(64, 8, _MANY_FP8, _MANY_FP8))),
    ExpertFormat.FP8_CHANNEL: (*_STREAM, Tuned(_ANY, Tiles(64, 8, _MANY_FP8, _MANY_FP8))),
    ExpertFormat.FP8_BLOCK: (*_STREAM, Tuned(_ANY, Tiles(64, 8, _MANY_FP8, _MANY_FP8))),
    ExpertFormat.NVFP4: (*_STREAM_FP4, Tuned(_ANY, Tiles(64, 8, _MANY, _MANY))),
}
"""Within the 99 KiB of shared memory that a program may have on every GPU since Ada."""
BY_CAPABILITY: dict[Capability, dict[ExpertFormat, tuple[Tuned, ...]]] = {}
"""What was measured to be faster on some GPU."""


def tiles_for(format: ExpertFormat, rows_of_expert: float, capability: Capability) -> Tiles:
    """On a GPU of that compute capability, for so many rows of an expert on average."""
    tuned = BY_CAPABILITY.get(capability, {}).get(format, DEFAULT[format])
    return next(entry.tiles for entry in tuned if rows_of_expert <= entry.most_rows)
