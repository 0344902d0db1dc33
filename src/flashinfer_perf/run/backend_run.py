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
from flashinfer_perf.run.events import Message, Severity
from flashinfer_perf.run.failure import libraries_may_refuse
from flashinfer_perf.run.fingerprint import Fingerprints
from flashinfer_perf.run.judge import agreement, conclusion, judge, probe, report, touched_inputs, verdict_of
from flashinfer_perf.run.launch import Copies, Launch, storages_in
from flashinfer_perf.run.process_group import start_line
from flashinfer_perf.run.ranks import PATIENCE_SECONDS, PREPARATION_PATIENCE_SECONDS, in_step
from flashinfer_perf.timing.bias import clock_bias
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.choose import choose_stop_rule, open_timer, wish_of
from flashinfer_perf.timing.measure import measure
from flashinfer_perf.timing.rank_times import rank_line
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
        target = in_step(ranks, self._prepare, PREPARATION_PATIENCE_SECONDS)
        yield from self._tuning(target.launch)
        self.outputs = in_step(ranks, lambda: self._first_call(target), PATIENCE_SECONDS)
        self.verdict = verdict_of(
            in_step(ranks, lambda: self._check(target), PATIENCE_SECONDS), self.truth is not None, ranks
        )
        self._compare_with_first()
        yield from self._remarks()
        goes_on = self.case.options.allow_output_mismatch
        yield from self._say(self.verdict, goes_on)
        if self.verdict.state is CheckState.MISMATCH and not goes_on:
            return
        was_wrong = self.verdict.state is CheckState.MISMATCH
        self.measurement, last = in_step(ranks, lambda: self._measure(target), PATIENCE_SECONDS)
        yield from self._apart()
        if self.measurement.fallback_reason:
            yield Message(Severity.WARNING, self.measurement.fallback_reason, once=True)
        again = verdict_of(in_step(ranks, lambda: self._check_again(last)), self.truth is not None, ranks)
        if again.state is CheckState.MISMATCH and not was_wrong:
            self.verdict = again
            yield from self._say(again, goes_on=True)

    def changed_inputs(self) -> list[str]:
        """Names of the inputs that hold other bytes than before. Every rank must ask: they remember together."""
        changed = self.inputs.changed()
        self.inputs_changed |= any(self.problem.ranks.all_gather(bool(changed)))
        return changed

    def _say(self, verdict: Verdict, goes_on: bool) -> Iterator[Message]:
        """The lines of a check; those of a validation end with its result."""
        validated = self.problem.validated
        yield from report(self.backend.name, verdict, validated)
        if validated:
            yield from conclusion(verdict, goes_on)

    def _apart(self) -> Iterator[Message]:
        """How far the ranks were apart; and whose times follow, where their lines do not name the backend."""
        if self.measurement is not None and (self.problem.ranks.size > 1 or self.case.routine.several_ranks):
            yield Message(Severity.INFO, f"{self.backend.name} on {rank_line(self.measurement)}")

    def _prepare(self) -> Target:
        began = perf_counter()
        with libraries_may_refuse():
            launch: Launch = self.backend.prepare(self.case.flags, self.problem)
        self.facts["prepare_ms"] = (perf_counter() - began) * 1e3
        self._take_facts({**self.problem.facts, **launch.facts})
        self.resolved_backend = launch.resolved_backend or self.backend.name
        return self._isolate(launch)

    def _isolate(self, launch: Launch) -> Target:
        """The launch on copies of its own of the inputs that it mutates; outputs that are no inputs are poisoned.

        Arguments that share memory with a mutated one are copied with it: a call in place stays one.
        """
        mutated = storages_in(dict(self.problem.tensors)) & storages_in(list(launch.written()))
        names = tuple(
            name
            for name, value in launch.arguments().items()
            if name not in launch.scratch and storages_in(value) & mutated
        )
        copies, written = Copies(), {id(tensor) for tensor in launch.written()}
        launch = launch.on_copies(copies, names)
        restores = [(copy, original) for copy, original in copies.pairs if id(original) in written]
        ranks = self.problem.ranks
        cache = cache_policy(self.case.options.cache, self.machine)
        target = Target(launch, restores, cache, ranks, start_line(ranks, self.machine))
        target.poison_outputs()
        return target

    def _first_call(self, target: Target) -> Outputs:
        began = perf_counter()
        with libraries_may_refuse():
            returned = target.launch()
        outputs = target.outputs_of(returned)
        self.facts["first_call_ms"] = (perf_counter() - began) * 1e3
        return {name: tensor.clone() for name, tensor in outputs.items()}

    def _tuning(self, launch: Launch) -> Iterator[Message]:
        """The documents' line. They warm up inside the tuner; here one call tunes, and those before timing follow."""
        if launch.tuned and self.case.options.verbose >= 1:
            calls = max(1, self.case.options.dry_run_iters)
            yield Message(Severity.INFO, f"Autotune warmup for {launch.tuned}: {calls} iters")

    def _remarks(self) -> Iterator[Message]:
        """What the routine says of the first call's outputs; worked out only where it is shown."""
        if self.truth is not None and self.outputs is not None and self.case.options.verbose >= 2:
            for text in self.problem.remarks(self.backend.name, self.outputs):
                yield Message(Severity.VVERBOSE, text)

    def _check(self, target: Target) -> list[Any]:
        findings = touched_inputs(self.changed_inputs())
        if self.truth is None or self.outputs is None:
            return findings
        findings = judge(self.problem, self.outputs, self.truth) + findings
        return findings + probe(self.problem, target.launch, self.truth)

    def _check_again(self, last: Outputs) -> list[Any]:
        """The timed object's own last output: a clock may run a launch in ways in which the first call did not."""
        touched = touched_inputs(self.changed_inputs())
        return touched + ([] if self.truth is None else judge(self.problem, last, self.truth))

    def _compare_with_first(self) -> None:
        if self.truth is not None and self.first_passed is not None and self.outputs is not None:
            name, other = self.first_passed
            self.verdict = replace(
                self.verdict, agreement=agreement(self.problem, self.outputs, other), agreement_with=name
            )

    def _measure(self, target: Target) -> tuple[Measurement, Outputs]:
        options = self.case.options
        wish = wish_of(options)
        cupti = wish.cupti and not target.launch.no_cupti
        bias = clock_bias(self.machine, cupti)  # before the clock is used: CUPTI slows the others down
        opened = open_timer(self.machine, wish, target, self.problem.work.bytes)
        try:
            measurement = measure(target, opened, choose_stop_rule(options), options.dry_run_iters)
            return replace(measurement, clock_bias=bias), opened.timer.last_outputs()
        finally:
            opened.timer.close()

    def _take_facts(self, facts: Mapping[str, Any]) -> None:
        declared = {fact.name for fact in (*GENERAL_FACTS, *self.case.routine.facts)}
        unknown = sorted(set(facts) - declared)
        if unknown:
            raise TypeError(f"routine {self.case.routine.name} declares no fact named {', '.join(unknown)}")
        self.facts.update(facts)
