"""Runs a case: the problem, its truth, then one backend after the other. Every backend asked for leaves a record."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.flags import shown, specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import CheckState, Record, Status
from flashinfer_perf.core.routine import Backend
from flashinfer_perf.device.environment import environment_of
from flashinfer_perf.device.machine import free_bytes
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.backend_run import BackendRun
from flashinfer_perf.run.events import CaseStarted, Event, Message, Severity
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.failure import classify
from flashinfer_perf.run.fingerprint import Fingerprints
from flashinfer_perf.run.judge import mismatch_reason
from flashinfer_perf.run.placement import machine_of
from flashinfer_perf.run.problem import Outputs, Problem, Shown, messages
from flashinfer_perf.run.ranks import Ranks, in_step
from flashinfer_perf.run.selection import Refused, Selection, one_that_works, select


def run_case(case: Case, ranks: Ranks, number: int = 1, total: int = 1) -> Iterator[Event]:
    """The events of a case, in the order in which they happen.

    Ctrl-C is not caught here: what is still pending then is the caller's to record (``unfinished``).
    """
    try:
        machine = in_step(ranks, lambda: machine_of(case.options.device, ranks))
        selection = in_step(ranks, lambda: select(case, machine))
    except Exception as error:  # whatever a driver, or a rule about a case, may throw
        yield from _case_failed(case, Machine(case.options.device, ""), list(asked_for(case)), error)
        return
    yield CaseStarted(case, machine, selection.names or asked_for(case), number, total)
    yield from _CaseRun(case, machine, ranks, selection).events()


def asked_for(case: Case) -> tuple[str, ...]:
    """The backends that owe a record: those typed, else the routine's default."""
    return case.backends or tuple(case.routine.backends)[:1]


def unfinished(case: Case, backend: str, error: BaseException) -> Record:
    """The record of a backend that did not come to its end."""
    status, reason = classify(error)
    return _record(case, Machine(case.options.device, ""), backend, status, reason)


@dataclass
class _CaseRun:
    case: Case
    machine: Machine
    ranks: Ranks
    selection: Selection
    problem: Problem | None = None
    inputs: Fingerprints | None = None
    truth: Mapping[str, Any] | None = None
    first_passed: tuple[str, Outputs] | None = None
    something_ran: bool = False
    closing: Sequence[Shown] = ()
    """Of the problem; to be said once something is timed."""
    something_timed: bool = False

    def events(self) -> Iterator[Event]:
        selection = self.selection
        yield from self._renamed_backends()
        yield from self._ignored_flags()
        if not selection.by_default:
            for refused in selection.refused:
                yield from self._refused(refused)
        try:
            if selection.runnable:
                yield from self._make_problem()
        except Exception as error:  # whatever it is, the other cases go on
            names = [backend.name for backend in selection.runnable]
            yield from _case_failed(self.case, self.machine, names[:1] if selection.by_default else names, error)
            return
        yield from self._first_that_works() if selection.by_default else self._all_that_can()
        if not self.something_ran:
            yield self._nothing_ran()
        if self.something_timed:
            yield from messages(self.closing, self.case.options.verbose)

    def _all_that_can(self) -> Iterator[Event]:
        for backend in self.selection.runnable:
            yield from self._backend(backend)

    def _first_that_works(self) -> Iterator[Event]:
        """The default backend, or the next one that can run; the default's own record when there is none."""
        default = next(iter(self.case.routine.backends.values()))
        attempts = [list(self._refused(refused)) for refused in self.selection.refused if refused.backend is default]
        for backend in self.selection.runnable:
            attempts.append(list(self._backend(backend)))
            if self.something_ran:
                break
        if self.something_ran and backend is not default:
            why = _record_in(attempts[0]).reason
            text = f"The default backend {default.name} cannot run here: {why}. Using {backend.name} instead."
            yield Message(Severity.WARNING, text, once=True)
        yield from attempts[-1 if self.something_ran else 0]

    def _make_problem(self) -> Iterator[Event]:
        case = self.case
        make = TensorFactory(self.machine.device, case.options.random_seed, free_bytes(self.machine), self.ranks)
        problem = self.problem = in_step(self.ranks, lambda: case.routine.make(case.flags, make))
        self.closing = problem.closing
        yield from messages(problem.shown, case.options.verbose)
        if problem.validated:
            yield Message(Severity.INFO, "Running validation before benchmarking...")
        if (case.options.refcheck or problem.validated) and self.truth is None:
            self.truth = in_step(self.ranks, problem.truth)
        self.inputs = Fingerprints(problem.tensors)

    def _backend(self, backend: Backend) -> Iterator[Event]:
        """The lines of one backend, then its record."""
        run = None
        yield from self._ignored_by(backend)
        try:
            run = self._new_run(backend)
            with backend.state():
                yield from run()
            status, reason = _outcome(run)
        except Exception as error:  # a backend may raise anything; the next one goes on
            status, reason = classify(error)
            yield from _failure_lines(self.case, backend.name, status, reason, error)
            if run is not None:
                self._look_at_inputs(run)
        yield self._finish(backend, run, status, reason)
        run = None  # its outputs are memory, too
        release_memory(self.machine)

    def _look_at_inputs(self, run: BackendRun) -> None:
        """After a failure nobody has asked yet whether an input was changed on the way."""
        try:
            in_step(self.ranks, run.changed_inputs)
        except Exception:  # a device that is lost does not answer
            run.inputs_changed = True

    def _new_run(self, backend: Backend) -> BackendRun:
        if self.inputs is None:
            list(self._make_problem())
        assert self.problem is not None
        assert self.inputs is not None
        return BackendRun(self.case, backend, self.machine, self.problem, self.inputs, self.truth, self.first_passed)

    def _finish(self, backend: Backend, run: BackendRun | None, status: Status, reason: str) -> Record:
        self.something_ran |= status is not Status.UNSUPPORTED
        if run is None:
            return _record(self.case, self.machine, backend.name, status, reason, backend.ignores)
        self.something_timed |= run.measurement is not None
        if run.verdict.state is CheckState.PASSED and self.first_passed is None and run.outputs is not None:
            self.first_passed = (backend.name, run.outputs)
        if run.inputs_changed:  # all hold the spoilt tensors, a truth that can be asked again too: two sets may not fit
            self.problem = self.inputs = self.truth = None
        return _record(
            self.case,
            self.machine,
            backend.name,
            status,
            reason,
            backend.ignores,
            resolved_backend=run.resolved_backend,
            measurement=run.measurement,
            work=run.problem.work,
            phase_work=run.problem.phase_work,
            verdict=run.verdict,
            facts=run.facts,
        )

    def _refused(self, refused: Refused) -> Iterator[Event]:
        name, routine = refused.backend.name, self.case.routine.name
        if refused.requirement.on_capability and self.machine.compute_capability:
            where = f"is not supported on compute capability {self.machine.compute_capability_text}"
            text = f"{name} for routine {routine} {where}. Skipping."
        else:
            text = f"{name} for routine {routine} cannot run: {refused.reason}. Skipping."
        yield Message(Severity.WARNING, text)
        yield _record(self.case, self.machine, name, Status.UNSUPPORTED, refused.reason)

    def _nothing_ran(self) -> Message:
        working = one_that_works(self.case, self.machine)
        hint = f" Try --backends {working}." if working else ""
        return Message(Severity.ERROR, f"No backends to test. Exiting.{hint}")

    def _renamed_backends(self) -> Iterator[Event]:
        renamed = self.case.routine.renamed
        for name in getattr(self.case.flags, "backends", None) or ():
            if name in renamed:
                text = f"Backend name '{name}' has been renamed to '{renamed[name]}' and will be removed in a future"
                yield Message(Severity.WARNING, f"{text} release.")

    def _ignored_flags(self) -> Iterator[Event]:
        for name in self.case.ignored:
            of_the_run = name in specs_of(Options)
            why = "it counts on the command line only" if of_the_run else f"{self.case.routine.name} does not read it"
            yield Message(Severity.WARNING, f"--{name} is ignored: {why}.")

    def _ignored_by(self, backend: Backend) -> Iterator[Event]:
        for name in _typed_in_vain(self.case, backend.ignores):
            unheeded = self.case.routine.specs[name].unheeded
            if unheeded:
                yield Message(Severity.INFO, f"{backend.name} {unheeded}")
            else:
                yield Message(Severity.WARNING, f"--{name} is ignored by backend {backend.name}.")


def release_memory(machine: Machine) -> None:
    """Gives back what the last backend held."""
    gc.collect()
    if machine.is_cuda:
        torch.cuda.empty_cache()


def _record_in(events: list[Event]) -> Record:
    """The record that ends a backend's events."""
    record = events[-1]
    assert isinstance(record, Record)
    return record


def _typed_in_vain(case: Case, ignores: tuple[str, ...]) -> tuple[str, ...]:
    """Flags that a backend ignores though they ask for something."""
    return tuple(name for name in ignores if getattr(case.flags, name) != case.routine.specs[name].default)


def _outcome(run: BackendRun) -> tuple[Status, str]:
    if run.verdict.state is CheckState.MISMATCH:
        return Status.MISMATCH, mismatch_reason(run.verdict)
    return Status.OK, ""


def _case_failed(case: Case, machine: Machine, backends: list[str], error: Exception) -> Iterator[Event]:
    status, reason = classify(error)
    flags = case.repro_command.partition(".py ")[2]
    yield Message(Severity.ERROR, f"Error running test: {flags or case.repro_command}")
    yield Message(Severity.ERROR, f"Error: {reason}")
    yield from _traceback_lines(error, status)
    for name in backends:
        yield _record(case, machine, name, status, reason)


def _failure_lines(case: Case, backend: str, status: Status, reason: str, error: Exception) -> Iterator[Event]:
    if status is Status.UNSUPPORTED:
        text = f"{backend} for routine {case.routine.name} cannot run: {reason}. Skipping."
        yield Message(Severity.WARNING, text)
        return
    yield Message(Severity.ERROR, f"Backend {backend}: {status}: {reason}")
    yield from _traceback_lines(error, status)


def _traceback_lines(error: Exception, status: Status) -> Iterator[Event]:
    if status is Status.FAILED:
        for block in traceback.format_exception(error):
            for line in block.rstrip().splitlines():
                yield Message(Severity.VERBOSE, line)


def _record(
    case: Case,
    machine: Machine,
    backend: str,
    status: Status,
    reason: str,
    ignores: tuple[str, ...] = (),
    **found: Any,
) -> Record:
    flags = {name: value for name, value in case.flag_values().items() if name not in ignores}
    options = {n: shown(getattr(case.options, n)) for n, spec in specs_of(Options).items() if not spec.per_process}
    return Record(
        status=status,
        reason=reason,
        routine=case.routine.name,
        backend=backend,
        case=flags,
        summary=case.summary,
        options=options,
        ignored_flags=case.ignored + _typed_in_vain(case, ignores),
        origin=case.origin,
        case_id=case.case_id,
        method_id=case.method_id,
        repro_command=case.repro_command,
        environment=environment_of(machine),
        timestamp=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **found,
    )
