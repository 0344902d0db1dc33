"""When to stop measuring. A rule is asked how many samples it wants next, and stops by answering 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flashinfer_perf.core.statistics import relative_half_width

FIRST_BATCH = 10
"""Samples before a precision is judged; the interval of a median needs six."""
MAX_SAMPLES = 100_000
"""Where a precision that cannot be reached gives up when no time was set."""


class StopRule(Protocol):
    def wanted(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> int:
        """How many samples to take next; 0 to stop."""
        ...

    def reason(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> str:
        """Why it stopped, for the record."""
        ...


@dataclass(frozen=True)
class FixedNumber:
    """So many samples, and no more."""

    count: int

    def wanted(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> int:
        return max(self.count - len(samples_ms), 0)

    def reason(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> str:
        return f"num_iters {self.count}"


@dataclass(frozen=True)
class TargetPrecision:
    """Until the 95 % interval of the median is narrow enough: batches grow by half of what there is."""

    relative: float

    def wanted(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> int:
        taken = len(samples_ms)
        if taken < FIRST_BATCH:
            return FIRST_BATCH - taken
        if relative_half_width(samples_ms, tick_ms) <= self.relative:
            return 0
        return min(max(taken // 2, 1), MAX_SAMPLES - taken)

    def reason(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> str:
        reached = relative_half_width(samples_ms, tick_ms)
        if reached <= self.relative:
            return f"target_precision {self.relative:.4g} reached ({reached:.3g})"
        return f"target_precision {self.relative:.4g} not reached ({reached:.3g}) in {len(samples_ms)} samples"


@dataclass(frozen=True)
class TimeBudget:
    """Another rule, but no longer than so many seconds. At least one sample is taken."""

    seconds: float
    inner: StopRule

    def wanted(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> int:
        wanted = self.inner.wanted(samples_ms, elapsed_s, tick_ms)
        if wanted == 0 or not samples_ms:
            return min(wanted, 1)
        if elapsed_s >= self.seconds:
            return 0
        affordable = int(len(samples_ms) * (self.seconds - elapsed_s) / max(elapsed_s, 1e-9))
        return min(wanted, affordable)

    def reason(self, samples_ms: Sequence[float], elapsed_s: float, tick_ms: float) -> str:
        if self.inner.wanted(samples_ms, elapsed_s, tick_ms) == 0:
            return self.inner.reason(samples_ms, elapsed_s, tick_ms)
        return f"max_time {self.seconds:g} s spent"
