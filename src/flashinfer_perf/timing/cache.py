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
    cold: bool
    cache_bytes: int
    """Size of the cache that is to be cold; 0 where it does not matter."""
    description: str
    """What was really done, for the record."""

    def prepare(self) -> None:
        """Called before every call, outside its time."""
        ...


class Warm:
    """Whatever the calls before have left."""

    cold = False
    cache_bytes = 0
    description = "warm"

    def prepare(self) -> None:
        return None


class Swept:
    """Cold: a buffer larger than the cache is written before each call, then another one read.

    The second sweep leaves clean lines: without it the timed kernel would pay for writing the first one's back.
    """

    cold = True

    def __init__(self, machine: Machine) -> None:
        self.cache_bytes = machine.last_level_cache_bytes or UNKNOWN_CACHE_BYTES
        words = FLUSH_FACTOR * self.cache_bytes // 4
        self._written = torch.empty(words, dtype=torch.float32, device=machine.device)
        self._read = torch.zeros(words, dtype=torch.float32, device=machine.device)
        self._sum = torch.empty((), dtype=torch.float32, device=machine.device)
        self.description = f"cold: {4 * words / 2**20:.0f} MiB written, then as much read, before each call"

    def prepare(self) -> None:
        self._written.zero_()
        torch.sum(self._read, dim=0, out=self._sum)


def cache_policy(choice: str | None, machine: Machine) -> CachePolicy:
    """``choice`` is 'cold', 'warm' or None for the device's default: cold on a GPU, warm on a CPU."""
    if choice is None:
        choice = "cold" if machine.is_cuda else "warm"
    return Swept(machine) if choice == "cold" else Warm()
