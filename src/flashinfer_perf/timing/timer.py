"""What every clock can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flashinfer_perf.timing.target import Target

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs


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

    def last_outputs(self) -> Outputs:
        """The outputs of the last timed call, by name."""
        ...

    @property
    def cache_description(self) -> str:
        """What was really done about the cache."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else the clock knows about its readings; the columns are listed in ``sinks.columns``."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


@dataclass(frozen=True)
class Opened:
    """A clock that is ready, and what kept better ones from being used ('' when it is the one wished for)."""

    timer: Timer
    fallback_reason: str = ""
