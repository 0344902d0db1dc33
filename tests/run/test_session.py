from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flashinfer_perf.core.record import Record, Status
from flashinfer_perf.core.requirement import capability
from flashinfer_perf.core.testlist import InvalidLine
from flashinfer_perf.run import session as module
from flashinfer_perf.run.events import CaseStarted, Message, Severity
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.run.session import Session
from tests.fakes import Fake, RecordingSink, from_call, raising, right, texts_in

INVALID = InvalidLine("--routine nonsense", "no such routine", "list.txt:2")


def zeros(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    out.zero_()


@pytest.fixture
def routine(fake: Fake) -> Fake:
    fake.add("good")
    fake.add("gpu", requires=(capability(minimum="9.0"),))
    fake.add("wrong", zeros)
    fake.add("fails", raising(ValueError("x")))
    return fake


@pytest.fixture
def _handler() -> Iterator[None]:
    """A test that spoils the handler of Ctrl-C spoils no other."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run(*items: Any, sinks: list[Any] | None = None) -> tuple[int, RecordingSink]:
    sink = RecordingSink()
    return Session([sink, *(sinks or [])], SingleRank()).run(items), sink


def found(sink: RecordingSink) -> list[tuple[str, str]]:
    return [(record.backend, str(record.status)) for record in sink.records]


# ---- the way of events ----


def test_every_event_goes_to_every_sink_and_sinks_are_closed(routine: Fake):
    second = RecordingSink()
    _, first = run(routine.case("--refcheck"), INVALID, sinks=[second])
    assert first.events == second.events
    assert (first.closed, second.closed) == (1, 1)


def test_cases_are_numbered(routine: Fake):
    _, sink = run(routine.case(), INVALID, routine.case())
    starts = [event for event in sink.events if isinstance(event, CaseStarted)]
    assert [(start.number, start.total) for start in starts] == [(1, 3), (3, 3)]


def test_an_invalid_line_has_its_documented_lines_and_a_record(routine: Fake):
    _, sink = run(routine.case(), INVALID)
    assert texts_in(sink.events, "ERROR") == [
        "Error running test: --routine nonsense",
        "Error: list.txt:2: no such routine",
    ]
    record = sink.records[-1]
    assert (record.status, record.reason, record.origin) == (Status.INVALID, "no such routine", "list.txt:2")
    assert (record.repro_command, record.routine, record.backend) == ("--routine nonsense", "", "")


# ---- exit status ----


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["--backends good"], 0),
        (["--backends good gpu"], 0),
        (["--backends good", "--backends gpu"], 0),
        (["--backends gpu"], 1),
        (["--backends good fails"], 1),
        (["--refcheck --backends good wrong"], 1),
        (["--refcheck --backends good wrong --allow_output_mismatch"], 0),
        (["--refcheck --backends wrong --allow_output_mismatch"], 0),
        (["--backends good", INVALID], 1),
        ([INVALID], 2),
        ([INVALID, INVALID], 2),
        (["--rows 1000000000000000"], 1),
    ],
)
def test_the_exit_status_follows_from_the_records(routine: Fake, lines: list[Any], status: int):
    items = [routine.case(line) if isinstance(line, str) else line for line in lines]
    assert run(*items)[0] == status


# ---- Ctrl-C ----


def interrupted_at(call: int) -> Callable[..., None]:
    """A kernel during which Ctrl-C is pressed: the exception comes from wherever the program happens to be."""
    return from_call(call, raising(KeyboardInterrupt()))


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.usefixtures("_handler")
def test_ctrl_c_keeps_what_was_measured_and_leaves_a_record_for_all_that_is_owed(fake: Fake, call: int):
    fake.add("first")
    fake.add("slow", interrupted_at(call))
    fake.add("third")
    status, sink = run(
        fake.case("--backends first"),
        fake.case("--backends first slow third"),
        INVALID,
        fake.case("--backends third first"),
        fake.case(),
    )
    assert status == 130
    assert found(sink) == [
        ("first", "ok"),
        ("first", "ok"),
        ("slow", "interrupted"),
        ("third", "interrupted"),
        ("", "invalid"),
        ("third", "interrupted"),
        ("first", "interrupted"),
        ("first", "interrupted"),
    ]
    assert sink.records[0].measurement is not None
    assert sink.records[2].reason == "interrupted by Ctrl-C"
    assert "Interrupted. What was measured is kept." in texts_in(sink.events, "ERROR")
    assert sink.closed == 1


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_during_the_default_backend_owes_its_record_only(fake: Fake):
    fake.add("default", interrupted_at(1))
    fake.add("other")
    status, sink = run(fake.case(), fake.case("--backends other"))
    assert (status, found(sink)) == (130, [("default", "interrupted"), ("other", "interrupted")])


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_while_a_stand_in_for_the_default_runs_leaves_one_record(fake: Fake):
    fake.add("gpu", requires=(capability(minimum="9.0"),))
    fake.add("slow", interrupted_at(2))
    status, sink = run(fake.case())
    assert (status, found(sink)) == (130, [("gpu", "interrupted")])


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_after_the_last_record_is_ctrl_c_all_the_same(routine: Fake, monkeypatch: pytest.MonkeyPatch):
    session = Session([sink := RecordingSink()], SingleRank())
    monkeypatch.setattr(session, "_settle", lambda item: raising(KeyboardInterrupt())())
    assert session.run([routine.case()]) == 130
    assert found(sink) == [("good", "ok")]


@pytest.mark.usefixtures("_handler")
def test_a_stand_in_that_was_measured_settles_what_the_default_owed(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    fake.add("gpu", requires=(capability(minimum="9.0"),))
    fake.add("good")
    session = Session([sink := RecordingSink()], SingleRank())
    monkeypatch.setattr(session, "_settle", lambda item: raising(KeyboardInterrupt())())
    assert session.run([fake.case()]) == 130
    assert found(sink) == [("good", "ok")]


@pytest.mark.usefixtures("_handler")
def test_a_real_signal_is_handled_like_the_exception(fake: Fake):
    def kernel(**tensors: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        right(**tensors)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fake.add("slow", from_call(3, kernel))
    status, sink = run(fake.case())
    assert (status, found(sink)) == (130, [("slow", "interrupted")])


class Watching(RecordingSink):
    """Notes the handler of Ctrl-C at each record and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[Any] = []

    def take(self, event: Any) -> None:
        super().take(event)
        if event in self.records:
            self.handlers.append(signal.getsignal(signal.SIGINT))

    def close(self) -> None:
        super().close()
        self.handlers.append(signal.getsignal(signal.SIGINT))


@pytest.mark.usefixtures("_handler")
def test_a_second_ctrl_c_ends_at_once_and_the_handler_is_given_back(fake: Fake):
    """A program that uses this one as a library keeps its own handler."""

    def own(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, own)
    fake.add("first")
    fake.add("slow", interrupted_at(1))
    sink = Watching()
    assert Session([sink], SingleRank()).run([fake.case("--backends first slow")]) == 130
    assert sink.handlers[1:] == [signal.SIG_DFL] * 2
    assert signal.getsignal(signal.SIGINT) is own


def test_the_handler_is_given_back_without_ctrl_c_too(routine: Fake):
    before = signal.getsignal(signal.SIGINT)
    Session([RecordingSink()], SingleRank()).run([routine.case()])
    assert signal.getsignal(signal.SIGINT) is before


class PressesCtrlC(RecordingSink):
    """Somebody presses Ctrl-C while this sink writes its first record."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def take(self, event: Any) -> None:
        if isinstance(event, Record):
            times, self._times = self._times, 0
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        super().take(event)


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_waits_until_a_record_is_in_every_file(routine: Fake):
    """Otherwise it would be on the screen, and not in the CSV behind it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first, second = PressesCtrlC(times=1), RecordingSink()
    assert Session([first, second], SingleRank()).run([routine.case(), routine.case()]) == 130
    assert found(first) == found(second) == [("good", "ok"), ("good", "interrupted")]


@pytest.mark.usefixtures("_handler")
def test_a_second_ctrl_c_does_not_wait_for_a_file(routine: Fake):
    """It may be on a disk that hangs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first, second = PressesCtrlC(times=2), RecordingSink()
    assert Session([first, second], SingleRank()).run([routine.case(), routine.case()]) == 130
    assert found(first) == found(second) == [("good", "interrupted")]  # of the second case


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_that_is_ignored_stays_ignored(routine: Fake):
    """A job in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert Session([sink := PressesCtrlC(times=1)], SingleRank()).run([routine.case()]) == 0
    assert found(sink) == [("good", "ok")]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_outside_the_main_thread_ctrl_c_leaves_its_records_too(fake: Fake):
    """Python lets only the main thread set handlers."""
    fake.add("slow", interrupted_at(1))
    results: list[Any] = []
    case = fake.case()
    thread = threading.Thread(target=lambda: results.append(run(case)))
    thread.start()
    thread.join()
    ((status, sink),) = results
    assert (status, found(sink)) == (130, [("slow", "interrupted")])


# ---- sinks that fail ----


def test_a_sink_that_fails_is_dropped_and_said_once_and_the_run_goes_on(routine: Fake):
    failing = RecordingSink(fails_at_record=2)
    status, sink = run(routine.case(), routine.case(), routine.case(), sinks=[failing])
    assert len(sink.records) == 3
    assert len(failing.records) == 1
    assert texts_in(sink.events, "ERROR") == ["the disk is full"]
    assert status == 1  # all was measured, but not all was kept


def test_two_sinks_may_fail_at_the_same_record(routine: Fake):
    failing = [RecordingSink(fails_at_record=1), RecordingSink(fails_at_record=1)]
    status, sink = run(routine.case(), routine.case(), sinks=failing)
    assert (status, len(sink.records)) == (1, 2)
    assert texts_in(sink.events, "ERROR") == ["the disk is full"] * 2


def test_a_sink_that_fails_at_its_end_is_said_by_the_first_one(routine: Fake):
    """The console is the first: it must be the last to be closed."""
    status, sink = run(routine.case(), sinks=[RecordingSink(fails_at_close=True), other := RecordingSink()])
    assert status == 1
    assert texts_in(sink.events, "ERROR") == ["the disk is full at last"]
    assert (sink.closed, other.closed) == (1, 1)


def test_a_failed_sink_does_not_hide_what_else_went_wrong(routine: Fake):
    assert run(INVALID, sinks=[RecordingSink(fails_at_record=1)])[0] == 2


@pytest.mark.usefixtures("_handler")
def test_a_failed_sink_does_not_hide_ctrl_c(fake: Fake):
    fake.add("slow", interrupted_at(1))
    assert run(fake.case(), sinks=[RecordingSink(fails_at_record=1)])[0] == 130


def test_without_any_sink_there_is_still_a_status(routine: Fake):
    assert Session([], SingleRank()).run([routine.case()]) == 0


def test_sinks_are_closed_when_the_program_itself_fails(routine: Fake, monkeypatch: pytest.MonkeyPatch):
    session = Session([sink := RecordingSink()], SingleRank())
    monkeypatch.setattr(session, "_events", lambda *_: raising(RuntimeError("a bug"))())
    with pytest.raises(RuntimeError, match="a bug"):
        session.run([routine.case()])
    assert sink.closed == 1


# ---- garbage ----


def test_what_a_routine_imported_is_exempt_from_collection_while_the_run_lasts(routine: Fake):
    frozen: list[int] = []

    class Counting(RecordingSink):
        def take(self, event: Any) -> None:
            super().take(event)
            if isinstance(event, CaseStarted):
                frozen.append(gc.get_freeze_count())

    gc.unfreeze()
    Session([Counting()], SingleRank()).run([routine.case(), routine.case()])
    assert frozen[0] == 0
    assert frozen[1] > 0
    assert gc.get_freeze_count() == 0


def test_what_is_said_once_is_said_once_in_a_run(monkeypatch: pytest.MonkeyPatch, routine: Fake):
    once, always = Message(Severity.WARNING, "no CUPTI", once=True), Message(Severity.WARNING, "again")
    monkeypatch.setattr(module, "run_case", lambda *_: iter([once, always, once]))
    _, sink = run(routine.case(), routine.case())
    assert texts_in(sink.events) == ["no CUPTI", "again", "again"]
