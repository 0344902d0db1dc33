"""The record: everything that is known of one backend's run of one case. Frozen, versioned, torch-free."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flashinfer_perf.core.statistics import Summary
from flashinfer_perf.core.work import Work

SCHEMA_VERSION = 1
"""Of the JSONL records and of the CSV's columns behind upstream's. Raise it when a field changes its meaning."""


class Status(str, enum.Enum):
    """How a (case, backend) ended."""

    OK = "ok"
    MISMATCH = "mismatch"
    UNSUPPORTED = "unsupported"
    INVALID = "invalid"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


class CheckState(str, enum.Enum):
    PASSED = "passed"
    MISMATCH = "mismatch"
    NOT_CHECKED = "not_checked"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class TensorStatistics:
    """For the reader of a mismatch: what the tensor looks like, and its worst element."""

    minimum: float
    maximum: float
    mean: float
    std: float
    worst: float


@dataclass(frozen=True)
class Finding:
    """What a check found about one output. Numbers that a check does not have are None."""

    output: str
    passed: bool
    detail: str
    elements: int = 0
    differing: int = 0
    max_abs: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    worst_index: tuple[int, ...] = ()
    actual: TensorStatistics | None = None
    expected: TensorStatistics | None = None
    coverage: str = ""
    """What the numbers are of, where they are not of the whole output beside the truth."""
    rank: int = 0
    """Whose output it is."""

    @property
    def fraction(self) -> float:
        """Share of elements that differ, 0 … 1."""
        return self.differing / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Verdict:
    """Against the truth; ``agreement`` is with the first backend that passed."""

    state: CheckState = CheckState.NOT_CHECKED
    findings: tuple[Finding, ...] = ()
    agreement: tuple[Finding, ...] = ()
    agreement_with: str = ""


@dataclass(frozen=True)
class Measurement:
    """Samples, what they are, and how they were taken."""

    samples_ms: tuple[float, ...]
    phases_ms: Mapping[str, tuple[float, ...]]
    """Samples of each named phase; empty for a launch of one phase."""
    summary: Summary
    timer: str
    fallback_reason: str
    cache_policy: str
    tick_ms: float
    calls_per_sample: int
    dry_runs: int
    stop_reason: str
    ranks: int
    timer_facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the clock knows: the gate, kernels seen, what was subtracted; how far the ranks were apart."""
    total_name: str = ""
    """What the whole of a call is called, where its phases have names; '' for the backend's."""
    clock_bias: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What kernels of known length read under each clock in this process, in microseconds."""


@dataclass(frozen=True)
class Record:
    """One (case, backend). Which parts are there follows from the status; see ``docs/records.md``."""

    status: Status
    reason: str
    routine: str
    backend: str
    resolved_backend: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)
    """The routine's flags with the values that took effect."""
    summary: str = ""
    """Those of them that differ from the defaults, in a line."""
    options: Mapping[str, Any] = field(default_factory=dict)
    ignored_flags: tuple[str, ...] = ()
    origin: str = ""
    case_id: str = ""
    method_id: str = ""
    repro_command: str = ""
    measurement: Measurement | None = None
    work: Work | None = None
    phase_work: Mapping[str, Work] = field(default_factory=dict)
    """Of the phases whose work is known, by their names."""
    verdict: Verdict = field(default_factory=Verdict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timestamp: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def mismatch_allowed(self) -> bool:
        """Timed in spite of its mismatch, because that was asked for."""
        return self.status is Status.MISMATCH and bool(self.options.get("allow_output_mismatch"))

    @property
    def label(self) -> str:
        """The backend as the documents report it: ``cudnn_autotune`` after --autotune took effect."""
        return f"{self.backend}_autotune" if self.case.get("autotune") else self.backend

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)
