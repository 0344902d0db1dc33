"""One backend: what its check catches, and that it is timed on fresh inputs. Through the engine, as users run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flashinfer_perf.checks.tolerance import EXACT
from flashinfer_perf.core.record import CheckState, Finding, Record, Status
from flashinfer_perf.core.routine import Fact
from flashinfer_perf.core.work import Work
from flashinfer_perf.run import backend_run
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing import choose
from tests.fakes import Fake, FakeFlags, fake_routine, from_call, make_fake, records_in, right, texts_in

ALL_CALLS = 1 + 1 + 3
"""The first one, a dry run, three timed ones."""


def zeros(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    out.zero_()
    residual.add_(x)


def not_a_number(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    right(x, residual, out)
    out[-1, -1] = float("nan")


def nothing_at_all(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    pass


def off_by_one_row(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    right(x, residual, out)
    out.copy_(out.roll(1, 0))


def last_element_forgotten(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    out.flatten()[:-1] = 2 * x.flatten()[:-1]
    residual.add_(x)


def residual_forgotten(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(2 * x)


def slightly_large(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    right(x, residual, out)
    out.mul_(1 + 1e-5)


def changes_an_input(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    right(x, residual, out)
    x[0, 0] += 1


BROKEN = [
    zeros,
    not_a_number,
    nothing_at_all,
    off_by_one_row,
    last_element_forgotten,
    residual_forgotten,
    slightly_large,
    changes_an_input,
]


# ---- the first call ----


@pytest.mark.parametrize("kernel", BROKEN)
def test_a_wrong_kernel_is_caught_and_not_timed(fake: Fake, kernel: Any):
    fake.add("a", kernel)
    record = fake.record("--refcheck")
    assert (record.status, record.verdict.state) == (Status.MISMATCH, CheckState.MISMATCH)
    assert record.measurement is None
    assert record.reason


def test_a_right_kernel_passes_and_is_timed(fake: Fake):
    fake.add("a")
    record = fake.record("--refcheck")
    assert (record.status, record.reason, record.verdict.state) == (Status.OK, "", CheckState.PASSED)
    assert [finding.output for finding in record.verdict.findings] == ["out", "residual"]
    assert record.measurement is not None
    assert len(record.measurement.samples_ms) == 3


def test_a_kernel_that_writes_nothing_is_caught_though_the_right_answer_lies_in_its_buffer(fake: Fake):
    """An allocator hands out the memory that a backend before has just released."""

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        kwargs = {"x": problem["x"], "residual": problem["residual"], "out": 2 * problem["x"]}
        return Launch(lambda x, residual, out: residual.add_(x), kwargs=kwargs, mutates=("out", "residual"))

    fake.routine.backend("a")(prepare)
    record = fake.record("--refcheck")
    assert (record.status, record.measurement) == (Status.MISMATCH, None)


def with_remarks(asked: list[str]) -> Callable[..., Problem]:
    def remarks(backend: str, outputs: Any) -> list[str]:
        asked.append(backend)
        return [f"{backend}: {name} {tuple(output.shape)}" for name, output in outputs.items()]

    return lambda case, make: replace(make_fake(case, make), remarks=remarks)


@pytest.mark.parametrize(("flags", "shown"), [("--refcheck -vv", True), ("--refcheck -v", False), ("-vv", False)])
def test_a_routines_remarks_on_outputs_stand_before_the_verdict(flags: str, shown: bool):
    asked: list[str] = []
    with fake_routine(make=with_remarks(asked)) as fake:
        fake.add("a")
        texts = texts_in(fake.events(flags))
    assert asked == ["a"] * shown
    remarks = [text for text in texts if text.startswith("a: ")]
    assert remarks == ["a: out (4, 6)", "a: residual (4, 6)"] * shown
    if shown:
        verdict = next(text for text in texts if text.startswith("Backend a: "))
        assert texts.index(remarks[-1]) < texts.index(verdict)


def test_without_refcheck_outputs_are_not_judged(fake: Fake):
    fake.add("a", zeros)
    record = fake.record()
    assert (record.status, record.verdict.state) == (Status.OK, CheckState.NOT_CHECKED)
    assert record.verdict.findings == ()


def test_without_refcheck_no_reference_is_computed():
    def make(case: FakeFlags, make: Any) -> Problem:
        problem = make_fake(case, make)
        return Problem(problem.tensors, lambda **_: pytest.fail("computed"), problem.work, problem.checks, make.ranks)

    with fake_routine(make=make) as fake:
        fake.add("a")
        assert fake.record().status is Status.OK


def test_a_changed_input_is_a_mismatch_even_where_nothing_is_checked(fake: Fake):
    fake.add("a", changes_an_input)
    record = fake.record()
    assert record.status is Status.MISMATCH
    assert record.reason == "x: an input changed that was not declared as mutated"


def test_a_wrong_number_of_outputs_is_a_failure_that_says_so(fake: Fake):
    fake.add("a", lambda x, residual, out: (x, x), mutates=("residual",), returns=("out",))
    record = fake.record("--refcheck")
    assert record.status is Status.FAILED
    assert record.reason == "TypeError: the call returned Tensor, Tensor, not out"


def test_an_output_that_a_check_needs_and_that_is_not_there_is_a_failure(fake: Fake):
    fake.add("a", mutates=("residual",))
    assert fake.record("--refcheck").reason == "TypeError: the backend gives no output named out; it gives residual"


def test_returned_outputs_are_judged_like_written_ones(fake: Fake):
    fake.add("right", lambda x, residual, out: (2 * x, residual + x), mutates=(), returns=("out", "residual"))
    fake.add("wrong", lambda x, residual, out: (residual + x, 2 * x), mutates=(), returns=("out", "residual"))
    assert [r.status for r in fake.records("--refcheck --backends right wrong")] == [Status.OK, Status.MISMATCH]


def test_a_check_that_is_not_implemented_is_a_failure_and_no_excuse(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    def judge(*_: Any) -> list[Finding]:
        raise NotImplementedError('"ne" not implemented for this format')

    monkeypatch.setattr(backend_run, "judge", judge)
    fake.add("a")
    assert fake.record("--refcheck").status is Status.FAILED


# ---- fresh inputs ----


def test_mutated_inputs_are_restored_before_every_call_and_the_problems_own_stay_untouched(fake: Fake):
    """A kernel that adds in place would otherwise sum up over calls, and the last output would be wrong."""
    seen = []

    def kernel(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        seen.append(residual.clone())
        right(x, residual, out)

    fake.add("a", kernel)
    assert fake.record("--refcheck").status is Status.OK
    (problem,) = fake.problems
    assert len(seen) == ALL_CALLS
    assert all(torch.equal(residual, problem["residual"]) for residual in seen)


def test_only_mutated_inputs_are_copied(fake: Fake):
    addresses: list[tuple[int, int]] = []

    def kernel(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        addresses.append((x.data_ptr(), residual.data_ptr()))
        right(x, residual, out)

    fake.add("a", kernel)
    fake.record()
    (problem,) = fake.problems
    assert {x for x, _ in addresses} == {problem["x"].data_ptr()}
    assert problem["residual"].data_ptr() not in {residual for _, residual in addresses}


def test_an_input_that_is_also_an_output_stays_one_place_in_memory():
    """A call in place is another kernel than one out of place: it must stay one when its tensor is copied."""
    in_place = []

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        def kernel(x: torch.Tensor, out: torch.Tensor) -> None:
            in_place.append(x.data_ptr() == out.data_ptr())
            out.mul_(2)

        return Launch(kernel, kwargs={"x": problem["x"], "out": problem["x"]}, mutates=("out",))

    with fake_routine(make=doubling) as fake:
        fake.routine.backend("a")(prepare)
        assert fake.record("--refcheck").status is Status.OK
    assert in_place == [True] * ALL_CALLS


def doubling(case: FakeFlags, make: Any) -> Problem:
    """out = 2 x, nothing else."""
    x = torch.arange(case.rows * case.columns)
    return Problem({"x": x}, lambda x: {"out": 2 * x}, Work(1, 1), {"out": EXACT}, make.ranks)


def test_views_of_one_pool_stay_views_of_one_copy():
    """K and V side by side in a pool of pages, appended to in one call: a tuple of two views."""
    pools = []

    def make(case: FakeFlags, make: Any) -> Problem:
        pool = torch.zeros(4, 2, 8)
        return Problem(
            {"pool": pool},
            lambda pool: {"cache.0": pool[:, 0] + 1, "cache.1": pool[:, 1] + 2},
            Work(1, 1),
            {"cache.0": EXACT, "cache.1": EXACT},
            make.ranks,
        )

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        def append(cache: tuple[torch.Tensor, torch.Tensor]) -> None:
            k, v = cache
            pools.append((k.untyped_storage().data_ptr(), v.untyped_storage().data_ptr()))
            k.add_(1)
            v.add_(2)

        return Launch(append, kwargs={"cache": problem["pool"].unbind(1)}, mutates=("cache",))

    with fake_routine(make=make) as fake:
        fake.routine.backend("a")(prepare)
        record = fake.record("--refcheck")
    assert (record.status, record.reason) == (Status.OK, "")
    assert [finding.output for finding in record.verdict.findings] == ["cache.0", "cache.1"]
    assert all(k == v for k, v in pools)


def test_a_mutated_input_may_be_expanded_beside_a_view_that_is_written():
    """Only what is written is restored: an expanded tensor cannot be copied into."""

    def make(case: FakeFlags, make: Any) -> Problem:
        return Problem({"x": torch.ones(3)}, lambda x: {"out": 2 * x}, Work(1, 1), {"out": EXACT}, make.ranks)

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        def kernel(many: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_(many.sum(0))

        kwargs = {"many": problem["x"].expand(2, -1), "out": problem["x"]}
        return Launch(kernel, kwargs=kwargs, mutates=("out",))

    with fake_routine(make=make) as fake:
        fake.routine.backend("a")(prepare)
        record = fake.record("--refcheck")
    assert (record.status, record.reason) == (Status.OK, "")


def test_scratch_is_neither_copied_nor_poisoned(fake: Fake):
    workspace = torch.full((4,), 7.0)
    seen = []

    def kernel(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, workspace: torch.Tensor) -> None:
        seen.append((workspace.data_ptr(), workspace.tolist()))
        right(x, residual, out)

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        kwargs = {"x": problem["x"], "residual": problem["residual"], "out": torch.empty_like(problem["x"])}
        return Launch(
            kernel, kwargs={**kwargs, "workspace": workspace}, mutates=("out", "residual"), scratch=("workspace",)
        )

    fake.routine.backend("a")(prepare)
    fake.record()
    assert seen == [(workspace.data_ptr(), [7.0] * 4)] * ALL_CALLS


# ---- the timed calls ----


@pytest.mark.parametrize("kernel", [zeros, not_a_number, off_by_one_row, changes_an_input, residual_forgotten])
@pytest.mark.parametrize("number", [2, 3, ALL_CALLS])
def test_a_kernel_that_is_wrong_only_later_is_caught_by_its_last_timed_output(fake: Fake, kernel: Any, number: int):
    fake.add("a", from_call(number, kernel))
    record = fake.record("--refcheck")
    assert (record.status, record.verdict.state) == (Status.MISMATCH, CheckState.MISMATCH)
    assert record.measurement is not None


def test_a_kernel_that_writes_nothing_any_more_is_caught(fake: Fake):
    """Its first output must not stand in for those that it never writes again: a graph may capture nothing."""
    fake.add("a", from_call(2, nothing_at_all))
    record = fake.record("--refcheck")
    assert record.status is Status.MISMATCH
    assert record.reason.startswith("out: 24/24 elements differ")


def test_an_input_changed_by_a_timed_call_is_a_mismatch_without_refcheck(fake: Fake):
    fake.add("a", from_call(3, changes_an_input))
    assert fake.record().reason == "x: an input changed that was not declared as mutated"


def test_a_mismatch_that_is_allowed_is_timed(fake: Fake):
    fake.add("a", zeros)
    record = fake.record("--refcheck --allow_output_mismatch")
    assert (record.status, record.mismatch_allowed) == (Status.MISMATCH, True)
    assert record.measurement is not None


def validated(case: FakeFlags, make: Any) -> Problem:
    return replace(make_fake(case, make), validated=True)


PASSED, FAILED = "PASSED: All ranks validated successfully", "FAILED: Validation errors detected"
WRONG = "ERROR: Output tensor mismatch from backend a: 24/24 (100.00%) elements differ "


@pytest.mark.parametrize(
    ("kernel", "flags", "begin", "errors", "timed"),
    [
        (right, "", [PASSED], [], True),
        (zeros, "", [WRONG, FAILED], ["Validation failed. Aborting benchmark."], False),
        (zeros, "--allow_output_mismatch", [WRONG, FAILED], [], True),
        (from_call(3, zeros), "", [PASSED, WRONG, FAILED], [], True),
    ],
)
def test_a_validation_is_told_from_its_start_to_its_result(kernel, flags, begin, errors, timed):
    with fake_routine(make=validated) as fake:
        fake.add("a", kernel)
        events = fake.events(flags)
    assert texts_in(events, "INFO") == ["Running validation before benchmarking..."]
    told = texts_in(events, "VALIDATE")
    assert [text.startswith(start) for text, start in zip(told, begin, strict=True)] == [True] * len(begin)
    assert texts_in(events, "ERROR") == errors
    (record,) = records_in(events)
    assert (record.measurement is not None) == timed


def test_a_check_that_is_no_validation_has_other_words(fake: Fake):
    fake.add("a")
    assert texts_in(fake.events("--refcheck"), "INFO", "VALIDATE") == []


def test_a_mismatch_is_reported_once_though_it_is_seen_twice(fake: Fake):
    fake.add("a", zeros)
    events = fake.events("--refcheck --allow_output_mismatch")
    assert len(texts_in(events, "ERROR")) == 1


def test_the_measurement_says_what_it_is(fake: Fake):
    fake.add("a")
    record = fake.record("--num_iters 4 --dry_run_iters 2")
    measured = record.measurement
    assert measured is not None
    assert (measured.timer, measured.cache_policy, measured.dry_runs) == ("cpu", "warm", 2)
    assert (len(measured.samples_ms), measured.calls_per_sample, measured.ranks) == (4, 1, 1)
    assert measured.stop_reason == "num_iters 4"
    assert measured.tick_ms > 0
    assert record.work == Work(flops=48, bytes=288)


def test_a_cold_cache_is_recorded_as_what_was_done(fake: Fake):
    fake.add("a")
    measured = fake.record("--cache cold").measurement
    assert measured is not None
    assert measured.cache_policy.startswith("cold: ")


def test_phases_are_timed_one_by_one():
    phases = (Phase("double", lambda _, x: 2 * x), Phase("hand over", lambda doubled, x: doubled))

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        return Launch(phases=phases, kwargs={"x": problem["x"]}, returns=("out",))

    with fake_routine(make=doubling) as fake:
        fake.routine.backend("a")(prepare)
        record = fake.record("--refcheck")
    measured = record.measurement
    assert record.status is Status.OK
    assert measured is not None
    assert list(measured.phases_ms) == ["double", "hand over"]
    sums = [sum(parts) for parts in zip(*measured.phases_ms.values(), strict=True)]
    assert list(measured.samples_ms) == pytest.approx(sums)


class Clock:
    """A timer that fails where it is told to."""

    name, calls_per_sample, tick_ms = "fake", 1, 1e-3
    cache_description, facts = "warm", {}

    def __init__(self, fails_in: str) -> None:
        self.fails_in = fails_in
        self.closed = 0

    def _may_fail(self, where: str) -> None:
        if where == self.fails_in:
            raise RuntimeError(f"{where} failed")

    def open(self, target: Any) -> None:
        self._may_fail("open")

    def sample(self, count: int) -> list[tuple[float, ...]]:
        self._may_fail("sample")
        return [(1.0,)] * count

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("where", ["open", "sample"])
def test_a_timer_that_fails_is_closed_all_the_same(fake: Fake, where: str, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(where)
    monkeypatch.setattr(choose, "CpuTimer", lambda: clock)
    fake.add("a")
    record = fake.record("--refcheck")
    assert (record.status, record.reason) == (Status.FAILED, f"RuntimeError: {where} failed")
    assert record.verdict.state is CheckState.PASSED  # what was found out before is kept
    assert clock.closed == 1


# ---- facts ----


def test_facts_of_problem_launch_and_engine_are_in_the_record():
    def make(case: FakeFlags, make: Any) -> Problem:
        problem = doubling(case, make)
        return Problem(
            problem.tensors, problem.reference, problem.work, problem.checks, make.ranks, facts={"length": 3}
        )

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        return Launch(lambda x: 2 * x, kwargs={"x": problem["x"]}, returns=("out",), facts={"plan_ms": 1.5})

    with fake_routine(make=make, facts=(Fact("length", "a length"), Fact("plan_ms", "a time"))) as fake:
        fake.routine.backend("a")(prepare)
        facts = fake.record().facts
    assert {name: facts[name] for name in ("length", "plan_ms")} == {"length": 3, "plan_ms": 1.5}
    assert facts["prepare_ms"] >= 0
    assert facts["first_call_ms"] >= 0


def test_a_fact_that_nobody_declared_is_a_failure(fake: Fake):
    fake.add("a", facts={"plan_ms": 1.0, "another": 2})
    record = fake.record()
    assert record.status is Status.FAILED
    assert record.reason == "TypeError: routine fake declares no fact named another, plan_ms"


@pytest.mark.parametrize(("named", "expected"), [("", "a"), ("cutlass", "cutlass")])
def test_what_really_ran_is_recorded(fake: Fake, named: str, expected: str):
    fake.add("a", resolved_backend=named)
    assert fake.record().resolved_backend == expected


def test_what_was_found_out_before_a_failure_is_kept(fake: Fake):
    fake.add("a", from_call(2, lambda **_: 1 / 0), resolved_backend="cutlass")
    record = fake.record("--refcheck")
    assert (record.status, record.resolved_backend) == (Status.FAILED, "cutlass")
    assert record.verdict.state is CheckState.PASSED
    assert "first_call_ms" in record.facts
    assert record.measurement is None


# ---- agreement ----


def test_later_backends_are_compared_with_the_first_that_passed(fake: Fake):
    fake.add("wrong", zeros)
    fake.add("first")
    fake.add("second")
    fake.add("third")
    events = fake.events("--refcheck --backends wrong first second third")
    wrong, first, second, third = records_in(events)
    assert (wrong.verdict.agreement_with, first.verdict.agreement_with) == ("", "")
    assert (second.verdict.agreement_with, third.verdict.agreement_with) == ("first", "first")
    assert [(finding.output, finding.passed) for finding in second.verdict.agreement] == [
        ("out", True),
        ("residual", True),
    ]
    assert [text for text in texts_in(events, "REFCHECK") if "from backend first" in text] != []


def test_a_backend_that_disagrees_says_so_beside_its_verdict(fake: Fake):
    fake.add("first")
    fake.add("zeros", zeros)
    events = fake.events("--refcheck --backends first zeros")
    assert (
        "Output tensor mismatch between backends first and zeros: 24 / 24 (100.00%) elements are different"
        in texts_in(events, "ERROR")
    )


# ---- state in the process ----


def test_the_state_that_a_backend_needs_is_held_from_prepare_to_the_last_call_and_cleared(fake: Fake):
    log: list[str] = []

    @contextlib.contextmanager
    def state() -> Any:
        log.append("set")
        try:
            yield
        finally:
            log.append("cleared")

    def declare(name: str, kernel: Callable[..., None]) -> None:
        def prepare(flags: FakeFlags, problem: Problem) -> Launch:
            log.append("prepare")
            return Launch(
                kernel,
                kwargs={"x": problem["x"], "residual": problem["residual"], "out": torch.empty_like(problem["x"])},
                mutates=("out", "residual"),
            )

        fake.routine.backend(name, state=state)(prepare)

    def logged(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        log.append("call")
        right(x, residual, out)

    declare("a", logged)
    declare("b", lambda **_: 1 / 0)
    records: list[Record] = fake.records("--backends a b", SingleRank())
    assert [record.status for record in records] == [Status.OK, Status.FAILED]
    assert log == ["set", "prepare", *["call"] * ALL_CALLS, "cleared", "set", "prepare", "cleared"]
