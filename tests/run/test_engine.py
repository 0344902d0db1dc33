"""A case from its problem to its records: every backend asked for leaves exactly one, whatever happens."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput, Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import CheckState, Record, Status
from flashinfer_perf.core.requirement import Requirement, capability, case_rule, package
from flashinfer_perf.run import engine, placement
from flashinfer_perf.run.engine import asked_for, run_case, unfinished
from flashinfer_perf.run.events import CaseStarted, Event, Message
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown
from flashinfer_perf.run.ranks import Ranks, SingleRank
from tests.fakes import (
    CPU,
    HOPPER,
    Fake,
    FakeFlags,
    fake_launch,
    fake_routine,
    from_call,
    make_fake,
    on_two_ranks,
    raising,
    records_in,
    right,
    texts_in,
)

NEEDS_GPU = capability(minimum="9.0")
NOT_INSTALLED = package("no_such_module_anywhere", extra="flashinfer")


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class BackendSupportedError(Exception):
    """As FlashInfer calls it."""


def kinds(events: list[Event]) -> list[str]:
    """The events in one word each: the severity of a message, the status of a record."""
    return [
        "started"
        if isinstance(event, CaseStarted)
        else event.severity.value
        if isinstance(event, Message)
        else f"record {event.backend} {event.status}"
        for event in events
    ]


def statuses(records: list[Record]) -> dict[str, Status]:
    found = {record.backend: record.status for record in records}
    assert len(found) == len(records), "two records of one backend"
    return found


# ---- order of events ----


def test_the_events_of_a_case_in_order(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("a")
    fake.add("b", ignores=("enable_pdl",))
    events = fake.events("--refcheck --backends b gpu a --unread 3 --enable_pdl")
    assert kinds(events) == [
        "started",
        "WARNING",  # a flag that the routine does not read
        "WARNING",  # a backend that cannot run
        "record gpu unsupported",
        "VVERBOSE",  # the problem's lines
        "VERBOSE",
        "WARNING",  # a flag that the backend ignores
        "REFCHECK",
        "REFCHECK",
        "record b ok",
        "REFCHECK",
        "REFCHECK",
        "REFCHECK",  # against the other backend
        "REFCHECK",
        "record a ok",
    ]


def test_the_start_names_what_will_run_and_where(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("a")
    fake.add("b")
    for flags, backends in (("", ("a",)), ("--backends b gpu a", ("b", "a")), ("--backends gpu", ("gpu",))):
        started = next(iter(run_case(fake.case(flags), SingleRank(), number=3, total=9)))
        assert isinstance(started, CaseStarted)
        assert (started.backends, started.machine.device) == (backends, "cpu")
        assert (started.number, started.total) == (3, 9)


def test_the_problem_is_made_and_its_truth_computed_before_any_backend_runs():
    log: list[str] = []

    def make(case: FakeFlags, make: Any) -> Problem:
        log.append("problem")
        problem = make_fake(case, make)

        def reference(**tensors: torch.Tensor) -> Any:
            log.append("truth")
            return problem.reference(**tensors)

        return Problem(problem.tensors, reference, problem.work, problem.checks, make.ranks)

    def logged(**tensors: torch.Tensor) -> None:
        log.append("kernel")
        right(**tensors)

    with fake_routine(make=make) as fake:
        fake.add("a", logged)
        fake.add("b", logged)
        fake.records("--refcheck --backends a b")
    assert log == ["problem", "truth", *["kernel"] * 10]


def test_a_backends_record_is_handed_out_before_the_next_one_starts(fake: Fake):
    """The [PERF] line is there as soon as a backend is measured."""
    fake.add("a")
    fake.add("b")
    events = run_case(fake.case("--backends a b"), SingleRank())
    assert next(event for event in events if isinstance(event, Record)).backend == "a"
    assert len(fake.problems) == 1  # b has not been prepared yet
    assert [record.backend for record in records_in(list(events))] == ["b"]


# ---- one record each, whatever happens ----


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("broken"), Status.FAILED),
        (AssertionError(), Status.FAILED),
        (Unsupported("not for these shapes"), Status.UNSUPPORTED),
        (NotImplementedError("not here"), Status.UNSUPPORTED),
        (BackendSupportedError("not here"), Status.UNSUPPORTED),
        (MemoryError("none left"), Status.OUT_OF_MEMORY),
        (OutOfMemoryError("tried to allocate 2 GiB"), Status.OUT_OF_MEMORY),
        (DoesNotFit("workspace", 10, 1), Status.OUT_OF_MEMORY),
        (ImportError("broken installation"), Status.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
@pytest.mark.parametrize("where", ["prepare", "first call"])
def test_an_exception_costs_one_backend_and_leaves_a_record(fake: Fake, where: str, error: Exception, status: Status):
    fake.add("a")
    if where == "prepare":
        fake.add("bad", error=error)
    else:
        fake.add("bad", raising(error))
    fake.add("b")
    records = fake.records("--refcheck --backends a bad b")
    assert statuses(records) == {"a": Status.OK, "bad": status, "b": Status.OK}
    assert records[1].reason
    assert "\n" not in records[1].reason


@pytest.mark.parametrize("error", [RuntimeError("later"), NotImplementedError("later"), MemoryError("later")])
def test_an_exception_in_a_timed_call_leaves_a_record_without_a_time(fake: Fake, error: Exception):
    fake.add("bad", from_call(3, raising(error)))
    fake.add("b")
    bad, good = fake.records("--refcheck --backends bad b")
    expected = Status.OUT_OF_MEMORY if isinstance(error, MemoryError) else Status.FAILED
    assert (bad.status, bad.measurement, good.status) == (expected, None, Status.OK)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("no data"), Status.FAILED),
        (InvalidInput("experts must divide"), Status.INVALID),
        (DoesNotFit("x", 10, 1), Status.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Status.OUT_OF_MEMORY),
        (NotImplementedError("randn"), Status.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
@pytest.mark.parametrize("where", ["problem", "reference"])
def test_a_case_without_a_problem_leaves_a_record_for_each_backend(where: str, error: Exception, status: Status):
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    def make(case: FakeFlags, make: Any) -> Problem:
        if where == "problem":
            fail()
        problem = make_fake(case, make)
        return Problem(problem.tensors, fail, problem.work, problem.checks, make.ranks)

    with fake_routine(make=make) as fake:
        fake.add("gpu", requires=(NEEDS_GPU,))
        fake.add("a")
        fake.add("b")
        events = fake.events("--refcheck --backends a gpu b")
        assert statuses(records_in(events)) == {"gpu": Status.UNSUPPORTED, "a": status, "b": status}
        assert texts_in(events, "ERROR")[0].startswith("Error running test: --routine fake --device cpu")
        assert fake.record("--refcheck").status is status


def test_absurd_sizes_are_refused_with_both_byte_counts(fake: Fake):
    fake.add("a")
    record = fake.record("--rows 1000000000000000")
    assert record.status is Status.OUT_OF_MEMORY
    assert "24000000000000000 bytes" in record.reason
    assert "are free" in record.reason


def test_a_missing_gpu_leaves_a_record_for_each_backend(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fake.add("a")
    fake.add("b")
    records = fake.records("--device cuda:0 --backends a b")
    assert statuses(records) == {"a": Status.UNSUPPORTED, "b": Status.UNSUPPORTED}
    assert "--device cpu" in records[0].reason
    assert statuses(fake.records("--device cuda")) == {"a": Status.UNSUPPORTED}


def test_a_driver_that_throws_when_it_is_asked_costs_one_case(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "find_machine", lambda device: raising(RuntimeError("CUDA error: unknown"))())
    fake.add("a")
    assert fake.record().reason == "RuntimeError: CUDA error: unknown"


def test_a_requirement_that_throws_costs_one_case(fake: Fake):
    """``None >= 64`` in a rule about an optional flag, say."""
    fake.add("a", requires=(case_rule("large", lambda flags: flags.rows <= None),))
    fake.add("b")
    assert statuses(fake.records("--backends a b")) == {"a": Status.FAILED, "b": Status.FAILED}


def test_a_failure_is_told_with_a_traceback_for_the_curious(fake: Fake):
    fake.add("a", raising(ValueError("bad shape")))
    events = fake.events()
    assert texts_in(events, "ERROR") == ["Backend a: failed: ValueError: bad shape"]
    traceback = texts_in(events, "VERBOSE")
    assert any("Traceback" in line for line in traceback)
    assert any("in kernel" in line for line in traceback)
    assert not any("\n" in line for line in traceback)


# ---- which backends run ----


def test_typed_backends_that_cannot_run_leave_unsupported_rows_and_a_hint(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("lib", requires=(NOT_INSTALLED,))
    fake.add("works")
    events = fake.events("--backends gpu lib")
    records = records_in(events)
    assert statuses(records) == {"gpu": Status.UNSUPPORTED, "lib": Status.UNSUPPORTED}
    assert "flashinfer-perf[flashinfer]" in records[1].reason
    assert texts_in(events)[-1] == "No backends to test. Exiting. Try --backends works."
    assert fake.problems == []  # said before anything is allocated


def test_the_hint_comes_too_when_they_say_so_only_as_they_are_prepared(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("picky", error=Unsupported("not for these shapes"))
    fake.add("works")
    events = fake.events("--backends picky gpu")
    assert statuses(records_in(events)) == {"gpu": Status.UNSUPPORTED, "picky": Status.UNSUPPORTED}
    assert texts_in(events)[-1] == "No backends to test. Exiting. Try --backends works."


# ---- renamed backends ----


def test_a_former_name_runs_the_backend_of_today_with_a_warning(fake: Fake):
    fake.routine.renamed = {"X": "Y"}
    fake.add("a")
    fake.add("Y")
    events = fake.events("--refcheck --backends X a")
    assert texts_in(events, "WARNING") == [
        "Backend name 'X' has been renamed to 'Y' and will be removed in a future release."
    ]
    assert statuses(records_in(events)) == {"Y": Status.OK, "a": Status.OK}
    assert events[0].backends == ("Y", "a")  # type: ignore[union-attr]


def test_both_names_of_a_backend_run_it_once(fake: Fake):
    fake.routine.renamed = {"X": "Y"}
    fake.add("Y")
    events = fake.events("--backends Y X")
    assert statuses(records_in(events)) == {"Y": Status.OK}
    assert len(texts_in(events, "WARNING")) == 1
    assert asked_for(fake.case("--backends X")) == ("Y",)


def test_present_names_and_the_default_are_not_warned_about(fake: Fake):
    fake.routine.renamed = {"X": "Y"}
    fake.add("Y")
    for flags in ("", "--backends Y"):
        assert texts_in(fake.events(flags), "WARNING") == []


def test_a_renamed_backend_that_cannot_run_is_refused_by_its_present_name(fake: Fake):
    fake.routine.renamed = {"X": "gpu"}
    fake.add("gpu", requires=(NEEDS_GPU,))
    events = fake.events("--backends X")
    assert statuses(records_in(events)) == {"gpu": Status.UNSUPPORTED}
    assert texts_in(events, "WARNING")[0].startswith("Backend name 'X' has been renamed to 'gpu'")


# ---- remarks ----


def test_remarks_are_told_as_they_are():
    def make(case: FakeFlags, make: Any) -> Problem:
        problem = make_fake(case, make)
        shown = (Shown("rows as asked for"), Shown("Rows", 4, level=1), Shown("few", level=1))
        return dataclasses.replace(problem, shown=(*shown, Shown("all of it", level=1, as_info=True)))

    with fake_routine(make=make) as fake:
        fake.add("a")
        events, verbose = fake.events(), fake.events("-v")
    assert texts_in(events, "VVERBOSE") == ["rows as asked for"]
    assert texts_in(events, "VERBOSE") == ["Rows: 4", "few"]
    assert (texts_in(events, "INFO"), texts_in(verbose, "INFO")) == ([], ["all of it"])


def closed(case: FakeFlags, make: Any) -> Problem:
    closing = (Shown("all ranks together", level=0, as_info=True), Shown("Rows", 4, level=1))
    return dataclasses.replace(make_fake(case, make), closing=closing)


def test_closing_lines_follow_the_last_backend():
    with fake_routine(make=closed) as fake:
        fake.add("a")
        fake.add("b")
        events = fake.events("--backends a b")
    assert kinds(events)[-3:] == ["record b ok", "INFO", "VERBOSE"]
    assert texts_in(events)[-2:] == ["all ranks together", "Rows: 4"]


def test_closing_lines_outlive_a_problem_that_a_backend_spoilt():
    def spoils(x: torch.Tensor, **tensors: torch.Tensor) -> None:
        x.add_(1)

    with fake_routine(make=closed) as fake:
        fake.add("spoils", spoils)
        assert "all ranks together" in texts_in(fake.events("--allow_output_mismatch"))


def test_without_a_time_there_is_nothing_to_close():
    with fake_routine(make=closed) as fake:
        fake.add("fails", raising(ValueError("x")))
        assert "all ranks together" not in texts_in(fake.events())


# ---- no hint ----


def test_there_is_no_hint_while_something_ran(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("works")
    fake.add("fails", raising(ValueError("x")))
    assert not any("No backends" in text for text in texts_in(fake.events("--backends gpu works")))
    assert not any("No backends" in text for text in texts_in(fake.events("--backends gpu fails")))


def test_the_compute_capability_has_a_documented_line_of_its_own(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "find_machine", lambda _: HOPPER)
    fake.add("blackwell", requires=(capability(10),))
    fake.add("lib", requires=(NOT_INSTALLED,))
    texts = texts_in(fake.events("--backends blackwell lib"), "WARNING")
    assert texts[0] == "blackwell for routine fake is not supported on compute capability 9.0. Skipping."
    assert texts[1].startswith("lib for routine fake cannot run: no_such_module_anywhere is not installed")
    assert texts[1].endswith("Skipping.")


def test_the_default_runs_where_it_can_and_nothing_is_said(fake: Fake):
    fake.add("a")
    fake.add("b")
    events = fake.events()
    assert statuses(records_in(events)) == {"a": Status.OK}
    assert texts_in(events, "WARNING", "ERROR") == []


def test_the_best_that_can_run_stands_in_for_the_default_and_it_is_said(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("lib", requires=(NOT_INSTALLED,))
    fake.add("b")
    fake.add("c")
    events = fake.events()
    assert statuses(records_in(events)) == {"b": Status.OK}
    (text,) = texts_in(events, "WARNING")
    assert text.startswith("The default backend gpu cannot run here: it needs a CUDA GPU")
    assert text.endswith("Using b instead.")


@pytest.mark.parametrize("where", ["prepare", "first call"])
def test_a_default_that_turns_out_not_to_run_is_stood_in_for(fake: Fake, where: str):
    error = Unsupported("heads must be even")
    if where == "prepare":
        fake.add("picky", error=error)
    else:
        fake.add("picky", raising(error))
    fake.add("b")
    fake.add("c")
    events = fake.events("--refcheck")
    assert statuses(records_in(events)) == {"b": Status.OK}
    assert texts_in(events, "WARNING") == [
        "The default backend picky cannot run here: heads must be even. Using b instead."
    ]


def test_only_the_backend_that_runs_is_said_to_stand_in_and_with_the_defaults_own_reason(fake: Fake):
    fake.add("gpu", requires=(NEEDS_GPU,))
    fake.add("picky", error=Unsupported("heads must be even"))
    fake.add("works")
    (text,) = texts_in(fake.events(), "WARNING")
    assert text.startswith("The default backend gpu cannot run here: it needs a CUDA GPU")
    assert text.endswith("Using works instead.")


def test_a_default_that_fails_is_not_stood_in_for(fake: Fake):
    """A broken kernel must not be hidden behind another one."""
    fake.add("a", raising(ValueError("x")))
    fake.add("b")
    assert statuses(fake.records()) == {"a": Status.FAILED}


@pytest.mark.parametrize("refused", [True, False])
def test_without_any_that_works_the_record_is_the_defaults(fake: Fake, refused: bool):
    if refused:
        fake.add("first", requires=(NEEDS_GPU,))
    else:
        fake.add("first", error=Unsupported("CUDA GPU wanted"))
    fake.add("second", error=Unsupported("nor here"))
    events = fake.events()
    (record,) = records_in(events)
    assert (record.backend, record.status) == ("first", Status.UNSUPPORTED)
    assert "CUDA GPU" in record.reason
    assert texts_in(events)[-1] == "No backends to test. Exiting."


# ---- mismatches ----


def zeros(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    out.zero_()


def test_a_mismatch_is_not_timed_and_the_others_go_on(fake: Fake):
    fake.add("a")
    fake.add("wrong", zeros)
    fake.add("b")
    records = fake.records("--refcheck --backends a wrong b")
    assert statuses(records) == {"a": Status.OK, "wrong": Status.MISMATCH, "b": Status.OK}
    assert [record.measurement is None for record in records] == [False, True, False]


def test_a_spoilt_input_is_made_anew_for_the_next_backend(fake: Fake):
    def spoils(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        right(x, residual, out)
        x.zero_()

    fake.add("spoils", spoils)
    fake.add("b")
    assert statuses(fake.records("--refcheck --backends spoils b")) == {"spoils": Status.MISMATCH, "b": Status.OK}
    first, second = fake.problems
    assert first is not second
    assert not torch.equal(first["x"], second["x"])


def test_the_truth_goes_with_spoilt_inputs(monkeypatch: pytest.MonkeyPatch):
    """It may hold them, to be asked again."""
    asked = []
    truth = Problem.truth
    monkeypatch.setattr(Problem, "truth", lambda problem: asked.append(problem) or truth(problem))
    with fake_routine() as fake:
        fake.add("spoils", lambda x, residual, out: x.zero_())
        fake.add("b")
        fake.records("--refcheck --backends spoils b")
        assert asked == fake.problems


@pytest.mark.parametrize("error", [RuntimeError("then fails"), Unsupported("then refuses")])
@pytest.mark.parametrize("where", ["prepare", "first call", "timed call"])
def test_an_input_spoilt_on_the_way_to_a_failure_is_made_anew(fake: Fake, where: str, error: Exception):
    """Nobody comes to judge its outputs: the next backend would be found guilty instead."""

    def spoils(x: torch.Tensor, **_: Any) -> None:
        x.zero_()
        raise error

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        if where == "prepare":
            spoils(problem["x"])
        return fake_launch(problem, from_call(1 if where == "first call" else 3, spoils))

    fake.routine.backend("spoils")(prepare)
    fake.add("b")
    records = fake.records("--refcheck --backends spoils b")
    assert records[1].status is Status.OK, records[1].reason


def test_untouched_inputs_are_shared_by_all_backends_even_after_a_failure(fake: Fake):
    fake.add("a")
    fake.add("fails", raising(ValueError("x")))
    fake.add("b")
    fake.records("--refcheck --backends a fails b")
    assert len({id(problem) for problem in fake.problems}) == 1


def test_a_device_that_is_lost_costs_every_backend_a_record_and_no_more(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """After an illegal access even the question whether an input changed raises."""

    def lost(**_: Any) -> None:
        monkeypatch.setattr(engine.Fingerprints, "changed", lambda _: raising(RuntimeError("illegal access"))())
        raise RuntimeError("illegal access")

    fake.add("a", lost)
    fake.add("b")
    assert statuses(fake.records("--refcheck --backends a b")) == {"a": Status.FAILED, "b": Status.FAILED}


# ---- what the record says ----


def test_a_record_knows_its_case(fake: Fake):
    fake.add("a", ignores=("enable_pdl",))
    case = fake.case("--rows 5 --enable_pdl --unread 1 --case_tag x", origin="list.txt:7")
    record = records_in(list(run_case(case, SingleRank())))[0]
    assert (record.routine, record.backend, record.origin) == ("fake", "a", "list.txt:7")
    assert record.case == {"rows": 5, "columns": 6}  # a flag that the backend ignores is not echoed
    assert set(record.ignored_flags) == {"unread", "enable_pdl"}
    assert record.options["case_tag"] == "x"
    assert (record.case_id, record.method_id) == (case.case_id, case.method_id)
    assert record.repro_command == case.repro_command
    assert record.environment["device"] == "cpu"
    assert record.timestamp.endswith("+00:00")


def test_flags_of_the_run_are_not_part_of_a_record(fake: Fake):
    fake.add("a")
    options = fake.record("--output_path o.csv").options
    assert {"output_path", "append", "jsonl", "format", "testlist"} & set(options) == set()
    assert options["num_iters"] == 3


@pytest.mark.parametrize(("typed", "said"), [("--enable_pdl", True), ("", False), ("--no-enable_pdl", False)])
def test_an_ignored_flag_is_said_to_be_ignored_where_it_asks_for_something(fake: Fake, typed: str, said: bool):
    fake.add("a", ignores=("enable_pdl",))
    events = fake.events(typed)
    assert texts_in(events, "WARNING") == ["--enable_pdl is ignored by backend a."] * said
    assert ("enable_pdl" in records_in(events)[0].ignored_flags) == said


def test_flags_that_the_routine_does_not_read_are_said_once(fake: Fake):
    fake.add("a")
    fake.add("b")
    events = fake.events("--backends a b --unread 3")
    assert texts_in(events, "WARNING") == ["--unread is ignored: fake does not read it."]


def test_what_is_owed_are_the_backends_typed_or_the_default(fake: Fake):
    fake.add("a")
    fake.add("b")
    assert asked_for(fake.case()) == ("a",)
    assert asked_for(fake.case("--backends b a")) == ("b", "a")


def test_what_did_not_come_to_its_end_has_a_record_of_its_own(fake: Fake):
    fake.add("a")
    record = unfinished(fake.case("--rows 9"), "a", KeyboardInterrupt())
    assert (record.status, record.backend, record.case["rows"]) == (Status.INTERRUPTED, "a", 9)


# ---- leaving no trace ----


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_references_state_is_gone_when_kernels_run(fake: Fake, precision: str):
    seen = []

    def kernel(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        seen.append((torch.get_float32_matmul_precision(), torch.is_grad_enabled()))
        right(x, residual, out)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        fake.add("a", kernel)
        fake.records("--refcheck")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {(precision, True)}


@pytest.mark.parametrize("ending", ["ok", "mismatch", "failure"])
def test_what_a_backend_held_is_gone_when_the_next_one_starts(fake: Fake, ending: str):
    held: list[weakref.ref[torch.Tensor]] = []
    alive_at_start: list[list[bool]] = []
    kernel = {"ok": right, "mismatch": zeros, "failure": lambda **_: 1 / 0}[ending]

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        alive_at_start.append([reference() is not None for reference in held])
        launch = fake_launch(problem, kernel)
        cycle: list[Any] = [launch.kwargs["out"]]
        cycle.append(cycle)  # a library's objects may refer to each other
        held.append(weakref.ref(cycle[0]))
        return launch

    for name in ("first", "a", "b"):
        fake.routine.backend(name)(prepare)
    gc.disable()  # not by chance
    try:
        fake.records("--refcheck --backends first a b")
    finally:
        gc.enable()
    assert alive_at_start == [[], [False], [False, False]]


def test_outputs_of_a_backend_are_released_before_the_device_is_asked_to_give_back_memory(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    runs: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    original = engine.BackendRun

    def watched(*args: Any) -> Any:
        run = original(*args)
        runs.append(weakref.ref(run))
        return run

    monkeypatch.setattr(engine, "BackendRun", watched)
    monkeypatch.setattr(engine, "release_memory", lambda _: alive.append(runs[-1]() is not None))
    fake.add("a")
    fake.add("b")
    fake.records("--refcheck --backends a b")
    assert alive == [False, False]


def test_spoilt_inputs_are_gone_before_new_ones_are_made():
    """Two sets of inputs may not fit."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def make(case: FakeFlags, make: Any) -> Problem:
        alive.extend(reference() is not None for reference in made)
        problem = make_fake(case, make)
        made.append(weakref.ref(problem["x"]))
        return problem

    def spoils(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        x.zero_()

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        return fake_launch(problem, spoils)

    with fake_routine(make=make) as fake:
        fake.routine.backend("a")(prepare)
        fake.routine.backend("b")(prepare)
        fake.records("--backends a b")
    assert alive == [False]


# ---- two ranks ----


def test_a_sample_is_the_longest_over_the_ranks_and_both_take_as_many():
    with fake_routine() as fake:

        def prepare(flags: FakeFlags, problem: Problem) -> Launch:
            return fake_launch(problem, right)

        fake.routine.backend("a")(prepare)
        first, second = on_two_ranks(lambda ranks: fake.record("--refcheck --target_precision 20%", ranks))
    assert first.status is second.status is Status.OK
    assert first.measurement is not None
    assert second.measurement is not None
    assert first.measurement.samples_ms == second.measurement.samples_ms
    assert first.measurement.ranks == 2


@pytest.mark.parametrize("where", ["problem", "reference", "prepare", "first call", "dry run", "last call"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_on_one_rank_ends_the_backend_on_both(where: str, failing: int):
    def fail_on(ranks: Ranks, place: str) -> None:
        if ranks.rank == failing and place == where:
            raise ValueError("broken")

    def make(case: FakeFlags, make: Any) -> Problem:
        fail_on(make.ranks, "problem")
        problem = make_fake(case, make)

        def reference(**tensors: torch.Tensor) -> Any:
            fail_on(make.ranks, "reference")
            return problem.reference(**tensors)

        return Problem(problem.tensors, reference, problem.work, problem.checks, make.ranks)

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        fail_on(problem.ranks, "prepare")
        calls = iter(["first call", "dry run", "1", "2", "last call"])

        def kernel(**tensors: torch.Tensor) -> None:
            fail_on(problem.ranks, next(calls))
            right(**tensors)

        return fake_launch(problem, kernel)

    with fake_routine(make=make) as fake:
        fake.routine.backend("a")(prepare)
        fake.add("b")
        records = on_two_ranks(lambda ranks: fake.records("--refcheck --backends a b", ranks))
    assert records[failing][0].reason == "ValueError: broken"
    assert records[1 - failing][0].reason == f"rank {failing}: ValueError: broken"
    for rank in range(2):
        whole_case = where in ("problem", "reference")
        assert statuses(records[rank]) == {"a": Status.FAILED, "b": Status.FAILED if whole_case else Status.OK}


@pytest.mark.parametrize("failing", [0, 1])
def test_a_default_that_one_rank_cannot_run_is_stood_in_for_on_both(failing: int):
    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        if problem.ranks.rank == failing:
            raise Unsupported("no NVLink here")
        return fake_launch(problem, right)

    with fake_routine() as fake:
        fake.routine.backend("a")(prepare)
        fake.add("b")
        records = on_two_ranks(lambda ranks: fake.records("--refcheck", ranks))
    assert [statuses(found) for found in records] == [{"b": Status.OK}] * 2


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("call", [1, 4])
def test_one_ranks_mismatch_is_everybodys(wrong: int, call: int):
    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        return fake_launch(problem, from_call(call, zeros if problem.ranks.rank == wrong else right))

    with fake_routine() as fake:
        fake.routine.backend("a")(prepare)
        fake.add("b")
        records = on_two_ranks(lambda ranks: fake.records("--refcheck --backends a b", ranks))
    for found in records:
        assert statuses(found) == {"a": Status.MISMATCH, "b": Status.OK}
        assert found[0].verdict.state is CheckState.MISMATCH


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("then", ["goes on", "fails"])
def test_inputs_that_one_rank_spoilt_are_made_anew_on_both(failing: int, then: str):
    """Making a problem takes all ranks: one alone would wait for the others for ever."""

    def prepare(flags: FakeFlags, problem: Problem) -> Launch:
        def spoils(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
            right(x, residual, out)
            if problem.ranks.rank == failing:
                x.zero_()
                if then == "fails":
                    raise ValueError("broken")

        return fake_launch(problem, spoils)

    with fake_routine() as fake:
        fake.routine.backend("a")(prepare)
        fake.add("b")
        records = on_two_ranks(lambda ranks: fake.records("--refcheck --backends a b", ranks))
    for found in records:
        assert found[0].status is (Status.FAILED if then == "fails" else Status.MISMATCH)
        assert found[1].status is Status.OK, found[1].reason


def test_machines_that_differ_end_the_case_on_both(monkeypatch: pytest.MonkeyPatch):
    def find(device: str) -> Machine:
        if threading.current_thread().name == "broken":
            raise Unsupported("no GPU on this host")
        return CPU

    monkeypatch.setattr(placement, "find_machine", find)
    with fake_routine() as fake:
        fake.add("a")

        def work(ranks: Ranks) -> Record:
            threading.current_thread().name = "broken" if ranks.rank == 1 else "whole"
            return fake.record("", ranks)

        records = on_two_ranks(work)
    assert [record.status for record in records] == [Status.UNSUPPORTED] * 2
    assert records[0].reason == "rank 1: no GPU on this host"


def test_a_rule_about_the_case_is_asked_with_the_cases_own_flags(fake: Fake):
    seen: list[tuple[Machine, Any]] = []

    def unmet(machine: Machine, flags: Any) -> str | None:
        seen.append((machine, flags.rows))
        return "never"

    fake.add("a", requires=(Requirement("x", unmet),))
    assert fake.record("--rows 3 --backends a").reason == "never"
    assert seen[0][1] == 3
