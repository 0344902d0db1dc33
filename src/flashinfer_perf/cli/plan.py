"""``--plan``: what would run, found out without a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.exit_status import FAILURE, NOTHING_PARSED, SUCCESS
from flashinfer_perf.core.testlist import InvalidLine


def print_plan(items: Sequence[Case | InvalidLine], format: str) -> int:
    """0 when every line is valid, 1 when some are not, 2 when none is."""
    write = _json_line if format == "json" else _text_line
    sys.stdout.write("".join(write(item) + "\n" for item in items))
    valid = sum(isinstance(item, Case) for item in items)
    invalid = len(items) - valid
    if format != "json":
        print(f"{valid} {'case' if valid == 1 else 'cases'}, {invalid} invalid {'line' if invalid == 1 else 'lines'}")
    return SUCCESS if not invalid else FAILURE if valid else NOTHING_PARSED


def _text_line(item: Case | InvalidLine) -> str:
    if isinstance(item, InvalidLine):
        return f"[ERROR] {item.origin}: {item.reason}"
    backends = " ".join(item.backends) or f"default: {next(iter(item.routine.backends))}"
    tag = f"  # {item.options.case_tag}" if item.options.case_tag else ""
    ignored = f"  ignored: {', '.join(item.ignored)}" if item.ignored else ""
    where = f"{item.origin}: " if item.origin else ""
    return f"{where}{item.case_id} {item.routine.name} [{backends}] {item.summary}{ignored}{tag}"


def _json_line(item: Case | InvalidLine) -> str:
    if isinstance(item, InvalidLine):
        return json.dumps({"origin": item.origin, "status": "invalid", "reason": item.reason})
    entry: dict[str, Any] = {
        "origin": item.origin,
        "case_id": item.case_id,
        "method_id": item.method_id,
        "routine": item.routine.name,
        "backends": list(item.backends),
        "flags": item.flag_values(),
        "ignored_flags": list(item.ignored),
        "repro_command": item.repro_command,
    }
    return json.dumps(entry)
