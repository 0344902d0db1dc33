"""Full records, samples included, one JSON object a line."""

from __future__ import annotations

import json
import math
from typing import Any

from flashinfer_perf.core.record import Record
from flashinfer_perf.run.events import Event
from flashinfer_perf.sinks.result_file import ResultFile


class JsonlFile:
    """The lossless form: everything that is in a record."""

    def __init__(self, path: str, append: bool = False) -> None:
        self._file = ResultFile(path, append)
        self._file.check()

    def take(self, event: Event) -> None:
        if isinstance(event, Record):
            self._file.write(json_line(event) + "\n")

    def close(self) -> None:
        self._file.close()


def json_line(record: Record) -> str:
    """A record as strict JSON: infinities, NaN and whatever else JSON has no words for become strings."""
    return json.dumps(_plain(record.as_dict()), allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
