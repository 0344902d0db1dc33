"""What every clock can do."""

from __future__ import annotations

from typing import Any, Protocol

from flashinfer_perf.timing.target import Target


class Timer(Protocol):
    """A clock. ``open`` once, ``sample`` as often as the stop rule asks, ``close`` whatever happened."""

    name: str
    tick_ms: float
    """Smallest difference that the clock shows."""
    calls_per_sample: int

    def open(self, target: Target) -> None:
        """Gets ready to time a target: captures, allocates, arms."""
        ...

    def sample(self, count: int) -> list[tuple[float, ...]]:
        """Times the target so often. Milliseconds, an entry for each phase (one for a launch without phases)."""
        ...

    def last_output(self) -> Any:
        """What the last timed call returned."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...
