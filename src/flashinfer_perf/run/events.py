"""What a run tells its sinks, beside records."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Record


class Severity(str, enum.Enum):
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    REFCHECK = "REFCHECK"
    VERBOSE = "VERBOSE"
    VVERBOSE = "VVERBOSE"


@dataclass(frozen=True)
class Message:
    """A line for the reader; VERBOSE and VVERBOSE need -v and -vv. ``once``: not again in the same run."""

    severity: Severity
    text: str
    once: bool = False


@dataclass(frozen=True)
class CaseStarted:
    """``backends`` are the ones that will run, or would if there were any."""

    case: Case
    machine: Machine
    backends: tuple[str, ...]
    number: int
    total: int


Event = Message | CaseStarted | Record
