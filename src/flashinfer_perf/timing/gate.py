"""Keeps the device busy while the host enqueues, so that what is measured is the device's work and not the launching.

A gate is a spin of bounded length, enqueued before the timed call. It never waits for the host: a launch that waits
for the device while the gate is closed would wait for ever if the gate waited for it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from flashinfer_perf.lazy import torch

SPIN_FACTOR = 2.0
"""A spin lasts at least this many times as long as the enqueueing that it has to hide."""
MIN_SPIN_MS = 0.02
MAX_SPIN_MS = 50.0
"""Launches that take longer to enqueue, or that wait for the device, cannot be gated."""


class GateLength:
    """How long to spin: doubled whenever a gate opened too early, given up beyond a cap. Knows no device."""

    def __init__(self, enqueue_ms: float) -> None:
        self.spin_ms = max(SPIN_FACTOR * enqueue_ms, MIN_SPIN_MS)
        self.voided = 0
        self.ungated = self.spin_ms > MAX_SPIN_MS

    def accept(self, held: bool) -> bool:
        """Whether a sample counts: its gate was still closed when the last launch had been enqueued."""
        if held or self.ungated:
            return True
        self.voided += 1
        self.spin_ms *= 2
        self.ungated = self.spin_ms > MAX_SPIN_MS
        return False

    @property
    def description(self) -> str:
        """For the record."""
        if self.ungated:
            return "ungated: launching takes too long, or waits for the device"
        return f"gated by a spin of {self.spin_ms:.3g} ms"


class Gate:
    """The gate of one launch on the current stream of a CUDA device."""

    def __init__(self, enqueue_ms: float, host_sync: bool = False) -> None:
        self.length = GateLength(enqueue_ms)
        self.length.ungated |= host_sync
        self._opened: Any = None
        cycles_per_ms()  # measured now: once CUPTI records, its spins would be taken for marks

    def close(self, opened: Any, line_up: Callable[[], Any] | None = None) -> None:
        """Enqueues the spin, then an event that tells when it is over. What is enqueued after it waits until then.

        Args:
            line_up: enqueues, between the two, what ends on several devices at once.
        """
        if not self.length.ungated:
            spin(self.length.spin_ms)
        if line_up is not None:
            line_up()
        opened.record()
        self._opened = opened

    def held(self) -> bool:
        """Whether the gate is still closed; asked when everything has been enqueued."""
        return not self._opened.query()


def spin(milliseconds: float) -> None:
    """Enqueues a kernel of one thread that watches the clock for that long."""
    torch.cuda._sleep(max(int(milliseconds * cycles_per_ms()), 1))


_CYCLES_PER_MS: dict[int, float] = {}


def cycles_per_ms() -> float:
    """Of the current device's clock, measured once; the clock may change, which the doubling makes up for."""
    device = torch.cuda.current_device()
    if device not in _CYCLES_PER_MS:
        _CYCLES_PER_MS[device] = _measure_cycles_per_ms()
    return _CYCLES_PER_MS[device]


def _measure_cycles_per_ms(cycles: int = 1_000_000) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(cycles)
    start.record()
    torch.cuda._sleep(cycles)
    end.record()
    torch.cuda.synchronize()
    return cycles / max(float(start.elapsed_time(end)), 1e-3)


def enqueue_ms(launch: Any) -> float:
    """How long the host takes to enqueue a call, once it has been called before."""
    torch.cuda.synchronize()
    began = perf_counter()
    launch()
    took = (perf_counter() - began) * 1e3
    torch.cuda.synchronize()
    return took
