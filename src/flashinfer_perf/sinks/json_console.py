"""``--format json``: one record a line on standard output; everything else goes to standard error."""

from __future__ import annotations

from typing import TextIO

from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import Record
from flashinfer_perf.run.events import Event
from flashinfer_perf.sinks.console import Console
from flashinfer_perf.sinks.jsonl_file import json_line


class JsonConsole:
    """Records for programs to read, lines for people beside them."""

    def __init__(self, stream: TextIO | None = None, people: TextIO | None = None, run: Options | None = None) -> None:
        self._stream = stream
        self._console = Console(people, run, stderr=True)

    def take(self, event: Event) -> None:
        self._console.take(event)
        if isinstance(event, Record):
            print(json_line(event), file=self._stream, flush=True)

    def close(self) -> None:
        return None
