"""Case n of N and the time left, on standard error, while somebody watches."""

from __future__ import annotations

import sys
from typing import Any

from flashinfer_perf.core.record import Record
from flashinfer_perf.run.events import CaseStarted, Event


class Progress:
    """A bar that disappears when the run is over. Use only where standard error is a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        console = Console(stderr=True, soft_wrap=True)  # a line is the reader's to wrap: it may be copied
        self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        self._task = self._bar.add_task("cases", total=total)
        self._bar.start()

    def take(self, event: Event) -> None:
        if isinstance(event, CaseStarted):
            self._bar.update(self._task, description=event.case.routine.name, completed=event.number - 1)
        elif isinstance(event, Record):
            self._bar.refresh()

    def close(self) -> None:
        self._bar.stop()


def wanted(total: int) -> bool:
    """Only for several cases, and only on a terminal."""
    return total > 1 and sys.stderr.isatty()
