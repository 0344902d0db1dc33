"""The CSV file: a header, then a row per record and timed phase, written as soon as they are there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from flashinfer_perf.core.record import Record
from flashinfer_perf.run.events import Event
from flashinfer_perf.run.session import SinkFailed
from flashinfer_perf.sinks.result_file import ResultFile
from flashinfer_perf.sinks.row import rows_of, text_of


class CsvFile:
    """Raises SinkFailed when an existing file to append to has another header."""

    def __init__(self, path: str, columns: Sequence[str], append: bool = False) -> None:
        self._file = ResultFile(path, append)
        self._columns = columns
        self._header = _line(columns)
        self._file.check()
        found = self._file.first_line()
        self._has_header = found is not None
        if found is not None and found != self._header.rstrip("\n"):
            raise SinkFailed(
                f"cannot append to {path}: its header is another one ({_difference(found, columns)}); "
                "choose another --output_path, or leave out --append to keep it under another name"
            )

    def take(self, event: Event) -> None:
        if isinstance(event, Record):
            lines = [_line(text_of(row.get(name)) for name in self._columns) for row in rows_of(event)]
            header = "" if self._has_header else self._header
            self._has_header = True
            self._file.write(header + "".join(lines))

    def close(self) -> None:
        self._file.close()


def _line(cells: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # it quotes only what is in its own line end
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _difference(found: str, columns: Sequence[str]) -> str:
    names = next(csv.reader([found]), [])
    missing = [name for name in columns if name not in names]
    extra = [name for name in names if name not in columns]
    parts = [f"lacks {', '.join(missing[:3])}"] * bool(missing) + [f"has {', '.join(extra[:3])}"] * bool(extra)
    return "; ".join(parts) or "another order"
