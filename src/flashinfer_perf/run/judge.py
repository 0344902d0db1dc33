"""Turns outputs into a verdict: against the truth, against another backend, and against untouched inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flashinfer_perf.core.record import CheckState, Finding, Verdict
from flashinfer_perf.run.events import Message, Severity
from flashinfer_perf.run.ranks import Ranks

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs, Problem


def judge(problem: Problem, outputs: Outputs, truth: Mapping[str, Any]) -> list[Finding]:
    """A finding for each output that the problem checks.

    Raises:
        TypeError: when the launch does not give an output that has a check.
    """
    missing = sorted(set(problem.checks) - set(outputs))
    if missing:
        raise TypeError(f"the backend gives no output named {', '.join(missing)}; it gives {', '.join(outputs)}")
    return [check.judge(name, outputs, truth) for name, check in problem.checks.items()]


def probe(problem: Problem, launch: Launch, truth: Mapping[str, Any]) -> list[Finding]:
    """Findings that need further calls."""
    found = (check.probe(name, launch, truth) for name, check in problem.checks.items())
    return [finding for finding in found if finding is not None]


def agreement(problem: Problem, outputs: Outputs, other: Outputs) -> tuple[Finding, ...]:
    """Findings of one backend's outputs against another's."""
    found = (check.agree(name, outputs, other) for name, check in problem.checks.items())
    return tuple(finding for finding in found if finding is not None)


def touched_inputs(names: list[str]) -> list[Finding]:
    """Findings about inputs that changed though they were not declared as mutated."""
    return [Finding(name, passed=False, detail="an input changed that was not declared as mutated") for name in names]


def verdict_of(findings: list[Finding], checked: bool, ranks: Ranks) -> Verdict:
    """The verdict over all ranks: passed where every rank's findings passed; a failure of any rank is everybody's."""
    everywhere = [
        dataclasses.replace(finding, rank=rank)
        for rank, found in enumerate(ranks.all_gather(findings))
        for finding in found
    ]
    failed = [finding for finding in everywhere if not finding.passed]
    if failed:
        return Verdict(CheckState.MISMATCH, tuple(failed))
    own = tuple(finding for finding in everywhere if finding.rank == ranks.rank)
    return Verdict(CheckState.PASSED if checked else CheckState.NOT_CHECKED, own)


def mismatch_reason(verdict: Verdict) -> str:
    """One line about the first failed finding."""
    failed = next(finding for finding in verdict.findings if not finding.passed)
    share = f"{failed.differing}/{failed.elements} elements differ; " if failed.elements else ""
    return f"{failed.output}: {share}{failed.detail}"


def report(backend: str, verdict: Verdict, validated: bool = False) -> Iterator[Message]:
    """The lines about a verdict.

    Args:
        validated: --validate asked for it: what is wrong is said of each rank, in rank order, under that heading.
    """
    for finding in verdict.findings:
        yield from _against_truth(backend, finding, validated)
    for finding in verdict.agreement:
        yield _against_backend(backend, verdict.agreement_with, finding)


def conclusion(verdict: Verdict, goes_on: bool) -> Iterator[Message]:
    """The documents' last lines of a validation.

    Args:
        goes_on: a failure does not keep the backend from being timed.
    """
    if verdict.state is not CheckState.MISMATCH:
        yield Message(Severity.VALIDATE, "PASSED: All ranks validated successfully")
        return
    yield Message(Severity.VALIDATE, "FAILED: Validation errors detected")
    if not goes_on:
        yield Message(Severity.ERROR, "Validation failed. Aborting benchmark.")


def _against_truth(backend: str, finding: Finding, validated: bool) -> Iterator[Message]:
    counts = f"{finding.differing}/{finding.elements} ({100 * finding.fraction:.2f}%) elements differ"
    if finding.passed:
        text = f"Backend {backend}: {counts} from the reference ({_numbers(finding)})"
        yield Message(Severity.REFCHECK, text)
        return
    what = f"{counts} ({_numbers(finding)}; {finding.detail})"
    if not finding.elements:  # about the tensor as a whole
        what = f"{finding.output}: {finding.detail}"
    text = f"Output tensor mismatch from backend {backend}: {what}"
    if validated:
        yield Message(Severity.VALIDATE, f"ERROR: {text}", rank=finding.rank)
    else:
        yield Message(Severity.ERROR, text)
    for side in ("actual", "expected"):
        numbers = getattr(finding, side)
        if numbers is not None:
            yield Message(
                Severity.VVERBOSE,
                f"{finding.output} {side}: min {numbers.minimum:.6g}, max {numbers.maximum:.6g}, "
                f"mean {numbers.mean:.6g}, std {numbers.std:.6g}, worst element {list(finding.worst_index)} "
                f"= {numbers.worst:.9g}",
            )


def _against_backend(backend: str, other: str, finding: Finding) -> Message:
    if finding.passed:
        text = f"Backend {backend}: {finding.differing}/{finding.elements} ({100 * finding.fraction:.2f}%) elements "
        return Message(Severity.REFCHECK, f"{text}differ from backend {other} ({_numbers(finding)})")
    text = f"{finding.differing} / {finding.elements} ({100 * finding.fraction:.2f}%) elements are different"
    return Message(Severity.ERROR, f"Output tensor mismatch between backends {other} and {backend}: {text}")


def _numbers(finding: Finding) -> str:
    parts = [finding.output]
    parts += [f"max abs {finding.max_abs:.3g}"] if finding.max_abs is not None else []
    parts += [f"relative L2 {finding.relative_l2:.3g}"] if finding.relative_l2 is not None else []
    parts += [finding.coverage] if finding.coverage else []
    return ", ".join(parts)
