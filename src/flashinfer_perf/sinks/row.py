"""A record as rows of the CSV."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from flashinfer_perf.core.record import Measurement, Record, Verdict
from flashinfer_perf.core.statistics import percentile, summarise
from flashinfer_perf.core.work import Work


def row_of(record: Record) -> dict[str, Any]:
    """Values by column; what a record does not have is left out."""
    return {
        **record.options,
        **record.environment,
        **record.case,
        **record.facts,
        **_identity(record),
        **_times(record),
        **_verdict(record.verdict),
    }


def rows_of(record: Record) -> list[dict[str, Any]]:
    """A row for each phase of a call that was timed in parts, then the row of the whole."""
    measured, whole = record.measurement, row_of(record)
    if measured is None:
        return [whole]
    return [*(_phase_row(record, measured, name) for name in measured.phases_ms), whole]


def _phase_row(record: Record, measured: Measurement, name: str) -> dict[str, Any]:
    """What is known of the phase alone, beside what it shares with the whole."""
    part = replace(measured, summary=summarise(measured.phases_ms[name]), phases_ms={}, total_name=name, timer_facts={})
    return row_of(replace(record, measurement=part, work=record.phase_work.get(name)))


def text_of(value: Any) -> str:
    """A cell: nothing for None, all digits of a float, words of a list separated by blanks."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return str(value)


def _identity(record: Record) -> dict[str, Any]:
    return {
        "routine": record.routine,
        "backend": record.label,
        "resolved_backend": record.resolved_backend,
        "status": record.status,
        "check": record.verdict.state,
        "reason": record.reason,
        "repro_command": record.repro_command,
        "ignored_flags": record.ignored_flags,
        "use_cupti": record.measurement.timer == "cupti" if record.measurement else None,
        "origin": record.origin,
        "case_id": record.case_id,
        "method_id": record.method_id,
        "timestamp": record.timestamp,
        "schema_version": record.schema_version,
        "flops": _counted(record.work, record.work.flops) if record.work else None,
        "bytes": record.work.bytes if record.work else None,
    }


def _times(record: Record) -> dict[str, Any]:
    measured = record.measurement
    if measured is None:
        return {}
    summary = measured.summary
    rates = record.work and {
        "tflops": _counted(record.work, record.work.tflops_per_s(summary.median_ms)),
        "tb_per_sec": record.work.tb_per_s(summary.median_ms),
    }
    return {
        "median_time": summary.median_ms,
        "std_time": summary.std_ms,
        **(rates or {}),
        **measured.timer_facts,
        "timer": measured.timer,
        "timer_fallback_reason": measured.fallback_reason,
        "cache_policy": measured.cache_policy,
        "samples": summary.samples,
        "calls_per_sample": measured.calls_per_sample,
        "dry_runs": measured.dry_runs,
        "tick": measured.tick_ms,
        "min": summary.min_ms,
        "p05": summary.p05_ms,
        "p95": summary.p95_ms,
        "mean": summary.mean_ms,
        "ci_low": summary.ci_low_ms,
        "ci_high": summary.ci_high_ms,
        "outliers": summary.outliers,
        "stop_reason": measured.stop_reason,
        "phase": measured.total_name,
        "phases": _phases(measured),
        "ranks": measured.ranks,
    }


def _counted(work: Work, value: float) -> float | str:
    """A number of FLOPs, or the documented word where they are not counted."""
    return "N/A" if math.isnan(work.flops) else value


def _phases(measured: Measurement) -> str:
    """'dispatch=0.0123 combine=0.0456', medians in milliseconds."""
    medians = {name: percentile(sorted(times), 50) for name, times in measured.phases_ms.items()}
    return " ".join(f"{name}={median!r}" for name, median in medians.items())


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The worst numbers over the outputs."""
    findings = verdict.findings
    if not findings:
        return {}
    return {
        "max_abs_error": _extreme(max, [finding.max_abs for finding in findings]),
        "relative_l2_error": _extreme(max, [finding.relative_l2 for finding in findings]),
        "cosine": _extreme(min, [finding.cosine for finding in findings]),
        "differing_elements": sum(finding.differing for finding in findings),
    }


def _extreme(choose: Any, values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None
