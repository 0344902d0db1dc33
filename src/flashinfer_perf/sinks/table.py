"""``--format table``: the documented lines, and at the end a table of everything."""

from __future__ import annotations

import sys
from typing import TextIO

from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import Record
from flashinfer_perf.run.events import Event
from flashinfer_perf.sinks.console import Console, decimals

WIDTH = 160
"""In files and pipes, where there is no terminal to ask."""


class Table:
    """One row per record."""

    def __init__(self, stream: TextIO | None = None, run: Options | None = None) -> None:
        self._stream = stream
        self._console = Console(stream, run)
        self._rows: list[tuple[str, ...]] = []

    def take(self, event: Event) -> None:
        self._console.take(event)
        if isinstance(event, Record):
            self._rows.append(table_row(event))

    def close(self) -> None:
        from rich.console import Console as RichConsole
        from rich.table import Table as RichTable

        table = RichTable("routine", "case", "backend", "status", "check", box=None, pad_edge=False)
        for name in ("median ms", "± 95 %", "TFLOP/s", "TB/s"):
            table.add_column(name, justify="right")
        table.add_column("reason", overflow="fold")
        for row in self._rows:
            table.add_row(*row)
        stream = self._stream or sys.stdout
        width = None if stream.isatty() else WIDTH
        RichConsole(file=stream, width=width, markup=False, emoji=False).print(table)


def table_row(record: Record) -> tuple[str, ...]:
    """Cells of a record; empty where nothing was measured."""
    tag = record.options.get("case_tag")
    names = (record.routine, f"{record.summary}  # {tag}".strip() if tag else record.summary, record.backend)
    ended = (*names, str(record.status), str(record.verdict.state))
    if record.measurement is None:
        return (*ended, "", "", "", "", record.reason)
    summary = record.measurement.summary
    half_width = (summary.ci_high_ms - summary.ci_low_ms) / 2
    time = f"{summary.median_ms:.{decimals(summary.median_ms)}f}"
    spread = f"{100 * half_width / summary.median_ms:.1f} %" if summary.median_ms else ""
    work = record.work
    rates = (
        (f"{work.tflops_per_s(summary.median_ms):.3f}", f"{work.tb_per_s(summary.median_ms):.3f}") if work else ("", "")
    )
    return (*ended, time, spread, *rates, record.reason)
