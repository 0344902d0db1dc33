"""The wall clock, for kernels that run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import perf_counter_ns
from typing import Any

from flashinfer_perf.timing.target import Target
from flashinfer_perf.timing.unrotated import UnrotatedTimer


class CpuTimer(UnrotatedTimer):
    """Reads ``perf_counter`` around each call; a call on the CPU is done when it returns."""

    name = "cpu"
    calls_per_sample = 1

    def __init__(self) -> None:
        super().__init__()
        self.tick_ms = clock_tick_ms()

    def open(self, target: Target) -> None:
        super().open(target)
        self._steps = target.launch.steps()
        target.poison_outputs()

    def sample(self, count: int) -> list[tuple[float, ...]]:
        return [self._once() for _ in range(count)]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        super().close()
        self._steps = []

    def _once(self) -> tuple[float, ...]:
        self._returned = result = None
        self.target.make_ready()
        took_ms = []
        for number, step in enumerate(self._steps):
            if number:
                self.target.ranks.barrier()
            before = perf_counter_ns()
            result = step(result)
            took_ms.append((perf_counter_ns() - before) / 1e6)
        self._returned = result
        return tuple(took_ms)


@cache
def clock_tick_ms() -> float:
    """The smallest difference between two readings of the clock, out of a thousand pairs."""
    deltas = []
    for _ in range(1000):
        before = perf_counter_ns()
        deltas.append(perf_counter_ns() - before)
    return min((delta for delta in deltas if delta > 0), default=1) / 1e6
