"""The wall clock, for kernels that run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from flashinfer_perf.timing.target import Target

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs


class CpuTimer:
    """Reads ``perf_counter`` around each call; a call on the CPU is done when it returns."""

    name = "cpu"
    calls_per_sample = 1

    def __init__(self) -> None:
        self.tick_ms = clock_tick_ms()
        self._target: Target | None = None
        self._last: Any = None

    def open(self, target: Target) -> None:
        self._target = target
        self._steps = target.launch.steps()
        target.poison_outputs()

    def sample(self, count: int) -> list[tuple[float, ...]]:
        return [self._once() for _ in range(count)]

    def last_outputs(self) -> Outputs:
        assert self._target is not None, "open() first"
        return self._target.launch.outputs(self._last)

    @property
    def cache_description(self) -> str:
        assert self._target is not None, "open() first"
        return self._target.cache.description

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        self._target = self._last = None
        self._steps = []

    def _once(self) -> tuple[float, ...]:
        assert self._target is not None, "open() first"
        self._last = result = None
        self._target.make_ready()
        stamps = [perf_counter_ns()]
        for step in self._steps:
            result = step(result)
            stamps.append(perf_counter_ns())
        self._last = result
        return tuple((after - before) / 1e6 for before, after in pairwise(stamps))


@cache
def clock_tick_ms() -> float:
    """The smallest difference between two readings of the clock, out of a thousand pairs."""
    deltas = []
    for _ in range(1000):
        before = perf_counter_ns()
        deltas.append(perf_counter_ns() - before)
    return min((delta for delta in deltas if delta > 0), default=1) / 1e6
