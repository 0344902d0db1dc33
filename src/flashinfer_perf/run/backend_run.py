"""One backend of one case: prepare, first call, check, time, check again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import CheckState, Measurement, Verdict
from flashinfer_perf.core.routine import GENERAL_FACTS, Backend
from flashinfer_perf.run.events import Message
from flashinfer_perf.run.fingerprint import Fingerprints
from flashinfer_perf.run.judge import agreement, judge, probe, report, touched_inputs, verdict_of
from flashinfer_perf.run.launch import Copies, Launch, poison, tensors_in
from flashinfer_perf.run.ranks import in_step
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.choose import choose_stop_rule, choose_timer
from flashinfer_perf.timing.measure import measure
from flashinfer_perf.timing.target import Target

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs, Problem


@dataclass
class BackendRun:
    """Runs one backend. What it finds out is there even when it is cut short by an exception.

    Attributes:
        truth: the reference's outputs, or None when no check was asked for.
        first_passed: outputs of the first backend that passed, with its name.
    """

    case: Case
    backend: Backend
    machine: Machine
    problem: Problem
    inputs: Fingerprints
    truth: Mapping[str, Any] | None
    first_passed: tuple[str, Outputs] | None
    facts: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    measurement: Measurement | None = None
    resolved_backend: str = ""
    outputs: Outputs | None = None
    inputs_changed: bool = False

    def __call__(self) -> Iterator[Message]:
        """Does it all; yields the lines of the check as soon as there are any."""
        ranks = self.problem.ranks
        target = in_step(ranks, self._prepare)
        self.outputs = in_step(ranks, lambda: self._first_call(target))
        self.verdict = verdict_of(in_step(ranks, lambda: self._check(target)), self.truth is not None, ranks)
        self._compare_with_first()
        yield from report(self.backend.name, self.verdict)
        if self.verdict.state is CheckState.MISMATCH and not self.case.options.allow_output_mismatch:
            return
        was_wrong = self.verdict.state is CheckState.MISMATCH
        self.measurement, last = in_step(ranks, lambda: self._measure(target))
        again = verdict_of(in_step(ranks, lambda: self._check_again(last)), self.truth is not None, ranks)
        if again.state is CheckState.MISMATCH and not was_wrong:
            self.verdict = again
            yield from report(self.backend.name, again)

    def _prepare(self) -> Target:
        began = perf_counter()
        launch: Launch = self.backend.prepare(self.case.flags, self.problem)
        self.facts["prepare_ms"] = (perf_counter() - began) * 1e3
        self._take_facts({**self.problem.facts, **launch.facts})
        self.resolved_backend = launch.resolved_backend or self.backend.name
        return self._isolate(launch)

    def _isolate(self, launch: Launch) -> Target:
        """The launch on copies of its own of the inputs that it mutates; outputs that are no inputs are poisoned."""
        inputs = {tensor.untyped_storage().data_ptr() for tensor in self.problem.tensors.values()}
        arguments = launch.arguments()
        written = {name: list(tensors_in(arguments[name])) for name in launch.mutates}
        shared = tuple(n for n, ts in written.items() if any(t.untyped_storage().data_ptr() in inputs for t in ts))
        copies = Copies()
        launch = launch.on_copies(copies, shared)
        for name in set(written) - set(shared):
            for tensor in written[name]:
                poison(tensor)
        return Target(launch, copies.pairs, cache_policy(self.case.options.cache, self.machine), self.problem.ranks)

    def _first_call(self, target: Target) -> Outputs:
        began = perf_counter()
        outputs = target.outputs_of(target.launch())
        self.facts["first_call_ms"] = (perf_counter() - began) * 1e3
        return {name: tensor.clone() for name, tensor in outputs.items()}

    def _check(self, target: Target) -> list[Any]:
        findings = self._touched()
        if self.truth is None or self.outputs is None:
            return findings
        findings = judge(self.problem, self.outputs, self.truth) + findings
        return findings + probe(self.problem, target.launch, self.truth)

    def _check_again(self, last: Outputs) -> list[Any]:
        """The timed object's own last output: a clock may run a launch in ways in which the first call did not."""
        return self._touched() + ([] if self.truth is None else judge(self.problem, last, self.truth))

    def _touched(self) -> list[Any]:
        changed = self.inputs.changed()
        self.inputs_changed |= bool(changed)
        return touched_inputs(changed)

    def _compare_with_first(self) -> None:
        if self.truth is not None and self.first_passed is not None and self.outputs is not None:
            name, other = self.first_passed
            self.verdict = replace(
                self.verdict, agreement=agreement(self.problem, self.outputs, other), agreement_with=name
            )

    def _measure(self, target: Target) -> tuple[Measurement, Outputs]:
        options = self.case.options
        timer = choose_timer(self.machine, options)
        timer.open(target)
        try:
            measurement = measure(target, timer, choose_stop_rule(options), options.dry_run_iters)
            return measurement, target.outputs_of(timer.last_output())
        finally:
            timer.close()

    def _take_facts(self, facts: Mapping[str, Any]) -> None:
        declared = {fact.name for fact in (*GENERAL_FACTS, *self.case.routine.facts)}
        unknown = sorted(set(facts) - declared)
        if unknown:
            raise TypeError(f"routine {self.case.routine.name} declares no fact named {', '.join(unknown)}")
        self.facts.update(facts)
