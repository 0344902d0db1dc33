"""The state of the last-level cache at each call, and a policy's word on what it really did."""

from __future__ import annotations

from typing import Protocol

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.lazy import torch

FLUSH_FACTOR = 2
"""A cache is swept with a buffer of this many times its size: exactly its size can leave lines behind."""
UNKNOWN_CACHE_BYTES = 64 << 20
"""Assumed where the machine does not tell the size of its last-level cache."""


class CachePolicy(Protocol):
    description: str
    """What was really done, for the record."""

    def prepare(self) -> None:
        """Called before every call, outside its time."""
        ...


class Warm:
    """Whatever the calls before have left."""

    description = "warm"

    def prepare(self) -> None:
        return None


class Swept:
    """Cold: a buffer larger than the cache is written before each call."""

    def __init__(self, machine: Machine) -> None:
        size = FLUSH_FACTOR * (machine.last_level_cache_bytes or UNKNOWN_CACHE_BYTES)
        self._buffer = torch.empty(size, dtype=torch.int8, device=machine.device)
        self.description = f"cold: {size / 2**20:.0f} MiB written before each call"

    def prepare(self) -> None:
        self._buffer.zero_()


def cache_policy(choice: str | None, machine: Machine) -> CachePolicy:
    """``choice`` is 'cold', 'warm' or None for the device's default: cold on a GPU, warm on a CPU."""
    if choice is None:
        choice = "cold" if machine.is_cuda else "warm"
    return Swept(machine) if choice == "cold" else Warm()
