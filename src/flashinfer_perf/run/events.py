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
    VALIDATE = "VALIDATE"
    VERBOSE = "VERBOSE"
    VVERBOSE = "VVERBOSE"


@dataclass(frozen=True)
class Message:
    """A line for the reader; VERBOSE and VVERBOSE need -v and -vv.

    Attributes:
        once: not again in the same run.
        rank: the one among several that it is about, where the line is to name it.
    """

    severity: Severity
    text: str
    once: bool = False
    rank: int | None = None

    @property
    def line(self) -> str:
        """``[INFO] text``, or ``[VALIDATE][Rank 1] text``."""
        whose = "" if self.rank is None else f"[Rank {self.rank}]"
        return f"[{self.severity.value}]{whose} {self.text}"


@dataclass(frozen=True)
class CaseStarted:
    """``backends`` are the ones that will run, or would if there were any."""

    case: Case
    machine: Machine
    backends: tuple[str, ...]
    number: int
    total: int


Event = Message | CaseStarted | Record
