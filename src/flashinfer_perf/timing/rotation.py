"""How many sets of buffers a graph has to go through so that each call finds a cold cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashinfer_perf.core.errors import human_bytes

if TYPE_CHECKING:
    import torch

BETWEEN_FACTOR = 2.0
"""Between two uses of a set, other sets of this many times the L2's size are read or written."""
LARGE_SHARE = 0.5
"""A call that touches this share of the L2 is replayed alone, behind a sweep of the cache. Between rotated sets the
lines that one call wrote are written back during the next, which costs large calls several microseconds; and copies of
a large model's weights would not fit."""
MIN_CALLS = 10
"""In a graph of several calls, so that the cost of replaying it is spread."""
MAX_SETS = 256
MAX_MEMORY_SHARE = 0.4
"""Of the free memory, for all sets together."""


SWEPT = "cold: L2 swept before each replay of one call"


@dataclass(frozen=True)
class Rotation:
    """Sets of buffers and calls of a graph. With one call, the cache is swept before each replay."""

    sets: int
    calls: int
    description: str


def buffer_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def plan_rotation(cold: bool, touched_bytes: int, set_bytes: int, l2_bytes: int, free_bytes: int) -> Rotation:
    """What to capture.

    Args:
        cold: whether calls have to find a cold cache at all.
        touched_bytes: what a call surely reads and writes; the smaller of its buffers and its declared work.
        set_bytes: memory of one set.
        l2_bytes: size of the cache; free_bytes: memory that is left.
    """
    if not cold:
        return Rotation(1, 1, "warm")
    if touched_bytes >= LARGE_SHARE * l2_bytes:
        return Rotation(1, 1, f"{SWEPT} (it touches {human_bytes(touched_bytes)})")
    sets = 1 + math.ceil(BETWEEN_FACTOR * l2_bytes / max(touched_bytes, 1))
    if sets > MAX_SETS or (sets - 1) * set_bytes > MAX_MEMORY_SHARE * free_bytes:
        return Rotation(1, 1, f"{SWEPT} (to rotate, {sets} sets would be needed)")
    calls = sets * math.ceil(MIN_CALLS / sets)
    return Rotation(sets, calls, f"cold: {sets} sets of {human_bytes(set_bytes)} rotated")
