"""How quantisers cut their work, by output format and GPU."""

from __future__ import annotations

from typing import NamedTuple

Capability = tuple[int, int]


class QuantizeTiling(NamedTuple):
    """A program's share and how it reads it."""

    rows: int
    """A power of two, 128 at most: a multiple of 4 writes scales of 128x4 in whole sectors."""
    blocks: int
    """Of a row: a power of two, 4 at least."""
    warps: int
    whole: bool
    """A thread reads whole blocks, rather than 16 bytes of one; see ``block_tiles.load_words``."""
    parts: int = 1
    """Tiles that a program takes, one after the other along the rows."""


DEFAULT = {
    "mxfp8": QuantizeTiling(rows=32, blocks=4, warps=4, whole=True),
    "mxfp4": QuantizeTiling(rows=32, blocks=4, warps=4, whole=True),
    "nvfp4": QuantizeTiling(rows=32, blocks=8, warps=4, whole=True),
}
BY_CAPABILITY: dict[Capability, dict[str, QuantizeTiling]] = {
    (9, 0): {
        "mxfp8": QuantizeTiling(rows=16, blocks=8, warps=4, whole=True),
        "mxfp4": QuantizeTiling(rows=32, blocks=8, warps=4, whole=True, parts=4),
        "nvfp4": QuantizeTiling(rows=32, blocks=8, warps=4, whole=True, parts=4),
    },
}
"""The fastest of some fifty on an H200, for bfloat16 of 8192 x 8192 in 128x4, after a flush of the cache."""


def tiling(format: str, capability: Capability) -> QuantizeTiling:
    """Of an output format (mxfp8, mxfp4 or nvfp4) on a GPU of that compute capability."""
    return BY_CAPABILITY.get(capability, {}).get(format, DEFAULT[format])
