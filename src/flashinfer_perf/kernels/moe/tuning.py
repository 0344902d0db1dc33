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


class HopperProduct(NamedTuple):
    """One product's; see ``hopper_product``."""

    columns: int
    """Of a tile: 128; or 256 with two parts, unless scales are in blocks. A gated first product's are those of w1."""
    stages: int
    """Blocks of k in the ring."""


class HopperTiles(NamedTuple):
    """For FP8 and 16 bits on compute capability 9.0 only."""

    parts: int
    """Of 64 rows of an expert, in a tile: 2 or 3."""
    neighbours: int
    """As in ``Tiles``."""
    first: HopperProduct
    second: HopperProduct


class Tuned(NamedTuple):
    most_rows: float
    """Of an expert, on average over all, that these are for."""
    tiles: Tiles | HopperTiles


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
_HOPPER_BLOCKS = HopperTiles(3, 4, HopperProduct(128, 4), HopperProduct(128, 4))
_HOPPER_PLAIN = HopperTiles(3, 2, HopperProduct(128, 5), HopperProduct(128, 4))
"""Experts of some 128 rows, half of them with a few more, have one tile of weights brought in for all of theirs."""
_HOPPER_SCALED = (
    Tuned(0.088, Tiles(16, 1, ProductTiles(128, 256, 8, 3), ProductTiles(64, 128, 4, 4))),
    Tuned(0.71, Tiles(16, 1, ProductTiles(64, 256, 4, 3), ProductTiles(128, 256, 8, 3))),
    Tuned(5.7, Tiles(16, 2, ProductTiles(64, 256, 4, 3), ProductTiles(128, 256, 8, 3))),
    Tuned(45, Tiles(32, 2, ProductTiles(64, 256, 4, 4), ProductTiles(64, 256, 4, 3))),
    Tuned(_ANY, _HOPPER_PLAIN),
)
BY_CAPABILITY: dict[Capability, dict[ExpertFormat, tuple[Tuned, ...]]] = {
    (9, 0): {
        ExpertFormat.BF16: (
            Tuned(0.088, Tiles(16, 2, ProductTiles(64, 128, 4, 3), ProductTiles(64, 128, 4, 4))),
            Tuned(0.71, Tiles(16, 8, ProductTiles(64, 128, 4, 4), ProductTiles(64, 128, 4, 4))),
            Tuned(5.7, Tiles(16, 1, ProductTiles(64, 128, 4, 3), ProductTiles(128, 128, 8, 3))),
            Tuned(45, Tiles(32, 1, ProductTiles(128, 128, 8, 3), ProductTiles(64, 128, 4, 3))),
            Tuned(91, Tiles(64, 4, ProductTiles(64, 64, 4, 3), ProductTiles(128, 64, 8, 3), extra=64)),
            Tuned(_ANY, _HOPPER_PLAIN),
        ),
        ExpertFormat.FP8_TENSOR: _HOPPER_SCALED,
        ExpertFormat.FP8_CHANNEL: _HOPPER_SCALED,
        ExpertFormat.FP8_BLOCK: (
            Tuned(0.088, Tiles(16, 8, ProductTiles(64, 128, 4, 3), ProductTiles(64, 128, 4, 3))),
            Tuned(0.71, Tiles(16, 4, ProductTiles(64, 128, 4, 6), ProductTiles(128, 128, 4, 3))),
            Tuned(5.7, Tiles(16, 1, ProductTiles(64, 128, 4, 6), ProductTiles(64, 128, 4, 6))),
            Tuned(45, Tiles(32, 4, ProductTiles(64, 128, 4, 3), ProductTiles(128, 128, 4, 3))),
            Tuned(_ANY, _HOPPER_BLOCKS),
        ),
        ExpertFormat.NVFP4: (
            Tuned(0.088, Tiles(16, 8, ProductTiles(64, 256, 4, 3), ProductTiles(64, 256, 4, 3))),
            Tuned(0.71, Tiles(16, 2, ProductTiles(64, 128, 4, 4), ProductTiles(128, 128, 4, 4))),
            Tuned(5.7, Tiles(16, 8, ProductTiles(64, 128, 4, 4), ProductTiles(128, 128, 4, 4))),
            Tuned(45, Tiles(32, 8, ProductTiles(64, 256, 4, 3), ProductTiles(128, 256, 4, 3))),
            Tuned(_ANY, Tiles(128, 4, ProductTiles(128, 64, 8, 3), ProductTiles(128, 64, 4, 3), extra=64)),
        ),
    },
}
"""What was measured to be faster on some GPU. On an H200, with DeepSeek-R1's sizes, rows of an expert were 1/32, 1/4,
2, 16 and 128 on average (1, 8, 64, 512 and 4096 tokens); each entry serves up to the geometric mean of its own number
and the next one's, so that none is nearer in proportion. Of 16-bit weights 64 rows (2048 tokens) were measured, too:
there Hopper's own kernel is no faster than the other, and the two meet between 64 and 128.
"""


def tiles_for(format: ExpertFormat, rows_of_expert: float, capability: Capability) -> Tiles | HopperTiles:
    """On a GPU of that compute capability, for so many rows of an expert on average."""
    tuned = BY_CAPABILITY.get(capability, {}).get(format, DEFAULT[format])
    return next(entry.tiles for entry in tuned if rows_of_expert <= entry.most_rows)
