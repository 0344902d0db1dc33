"""The documented lines on standard output."""

from __future__ import annotations

import math
import sys
from typing import TextIO

from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import Record
from flashinfer_perf.core.statistics import Summary, summarise
from flashinfer_perf.core.work import Work
from flashinfer_perf.device.environment import flashinfer_version
from flashinfer_perf.run.events import CaseStarted, Event, Message, Severity
from flashinfer_perf.sinks.namespace import namespace_line

LABEL_WIDTH = 15
NEEDS_VERBOSITY = {Severity.VERBOSE: 1, Severity.VVERBOSE: 2}
CUPTI_DEPRECATED = "--use_cupti is deprecated and will be removed in a future release. CUPTI is now enabled by default."


class Console:
    """Writes plainly and at once, so that logs and pipes see what a terminal sees.

    Without a stream to standard output (or error) as it is at the time: a progress bar may stand in for it.
    """

    def __init__(self, stream: TextIO | None = None, run: Options | None = None, stderr: bool = False) -> None:
        self._stream = stream
        self._run = run
        self._stderr = stderr
        self._verbosity = 0

    def take(self, event: Event) -> None:
        if isinstance(event, CaseStarted):
            self._verbosity = event.case.options.verbose
            for line in case_lines(event, self._run):
                self._print(line)
        elif isinstance(event, Message):
            if self._verbosity >= NEEDS_VERBOSITY.get(event.severity, 0):
                self._print(event.line)
        else:
            for line in perf_lines(event):
                self._print(line)

    def close(self) -> None:
        return None

    def _print(self, line: str) -> None:
        print(line, file=self._stream or (sys.stderr if self._stderr else sys.stdout), flush=True)


def case_lines(started: CaseStarted, run: Options | None = None) -> list[str]:
    """What stands above a case's results, in the documents' order."""
    case, machine = started.case, started.machine
    lines = []
    if started.total > 1:
        tag = f"  # {case.options.case_tag}" if case.options.case_tag else ""
        lines.append(f"[INFO] Case {started.number} of {started.total}: {case.routine.name} {case.summary}{tag}")
    if case.options.verbose >= 1:
        lines.append(f"[INFO] {namespace_line(case, machine, started.backends, run)}")
    if case.options.use_cupti:
        lines.append(f"[WARNING] {CUPTI_DEPRECATED}")
    if case.options.verbose >= 1:
        lines.append(f"[INFO] Running {case.routine.label}")
        lines.append(f"[INFO] FlashInfer version: {flashinfer_version()}")
    if case.options.verbose >= 2:
        lines.append(f"[VVERBOSE] gpu_name = {machine.name.replace(' ', '_')!r}")
    if case.options.generate_repro_command:
        lines.append(f"[INFO] To reproduce this test case, run the following command: {case.repro_command}")
    return lines


def perf_lines(record: Record) -> list[str]:
    """A line for each phase of a launch that has several, then the whole; none for a record without a time."""
    measured = record.measurement
    if measured is None:
        return []
    works = record.phase_work
    phases = [perf_line(name, summarise(times), works.get(name)) for name, times in measured.phases_ms.items()]
    return [*phases, perf_line(measured.total_name or record.label, measured.summary, record.work)]


def perf_line(label: str, summary: Summary, work: Work | None) -> str:
    """``[PERF] cudnn          :: median time 0.285 ms; std 0.000 ms; achieved tflops …``; nan without work."""
    tflops = work.tflops_per_s(summary.median_ms) if work else math.nan
    tb_per_s = work.tb_per_s(summary.median_ms) if work else math.nan
    digits = decimals(summary.median_ms)
    return (
        f"[PERF] {label:<{LABEL_WIDTH}}:: median time {summary.median_ms:.{digits}f} ms; "
        f"std {summary.std_ms:.{digits}f} ms; achieved tflops {tflops:.3f} TFLOPs/sec; "
        f"achieved tb_per_sec {tb_per_s:.3f} TB/sec"
    )


def decimals(time_ms: float) -> int:
    """Three from 0.1 ms up; below, as many as three significant digits take, but nothing under a nanosecond."""
    if time_ms >= 0.1 or time_ms <= 0:
        return 3
    return min(2 - math.floor(math.log10(time_ms)), 6)
