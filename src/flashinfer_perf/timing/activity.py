"""GPU activities as CUPTI records them: kernels, copies and fills, with the device's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flashinfer_perf.timing.kernel_names import readable

MIN_MAJOR = 13
BUFFER_BYTES = 8 << 20
KINDS = ("CONCURRENT_KERNEL", "MEMCPY", "MEMSET")


@dataclass(frozen=True, order=True)
class Activity:
    """Times in nanoseconds of the device's clock."""

    start_ns: int
    end_ns: int
    name: str


def why_unavailable() -> str:
    """Why CUPTI cannot be used; '' when it can."""
    try:
        found = version("cupti-python")
        from cupti import cupti  # noqa: F401  (is it whole?)
    except PackageNotFoundError:
        return "CUPTI is not installed. Try 'pip install -U cupti-python'."
    except Exception as error:  # a library of the wrong version fails in its own ways
        return f"CUPTI cannot be loaded: {error}."
    if int(found.partition(".")[0]) < MIN_MAJOR:
        return f"cupti-python {found} is too old: {MIN_MAJOR} or newer is needed. Try 'pip install -U cupti-python'."
    return ""


class ActivityLog:
    """Records activities while it is open. ``take`` gives those so far, oldest first, and forgets them."""

    def __init__(self) -> None:
        self._enabled: list[Any] = []

    def open(self) -> None:
        """Switches recording on; if that fails, what was on is off again."""
        from cupti import cupti

        _register_once()
        _RECORDED.clear()
        try:
            for name in KINDS:
                kind = getattr(cupti.ActivityKind, name)
                cupti.activity_enable(kind)
                self._enabled.append(kind)
        except BaseException:
            self.close()
            raise

    def take(self) -> list[Activity]:
        from cupti import cupti

        cupti.activity_flush_all(1)
        found = sorted(_RECORDED)
        _RECORDED.clear()
        return found

    def close(self) -> None:
        """Switches recording off, whatever happened."""
        from cupti import cupti

        while self._enabled:
            cupti.activity_disable(self._enabled.pop())


_RECORDED: list[Activity] = []
_REGISTERED: list[bool] = []


def _register_once() -> None:
    """CUPTI keeps one pair of callbacks in a process."""
    from cupti import cupti

    if not _REGISTERED:
        cupti.activity_register_callbacks(_on_buffer_requested, _on_buffer_completed)
        _REGISTERED.append(True)


def _on_buffer_requested() -> tuple[int, int]:
    return BUFFER_BYTES, 0


def _on_buffer_completed(activities: list[Any]) -> None:
    for activity in activities:
        name = getattr(activity, "name", None) or type(activity).__name__
        _RECORDED.append(Activity(activity.start, activity.end, readable(name)))
