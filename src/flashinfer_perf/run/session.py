"""A run from its first case to its exit status: events go to the sinks, and Ctrl-C keeps what was measured."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Protocol

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.exit_status import FAILURE, INTERRUPTED, SUCCESS, Tally
from flashinfer_perf.core.record import Record, Status
from flashinfer_perf.core.testlist import InvalidLine
from flashinfer_perf.run.engine import asked_for, run_case, unfinished
from flashinfer_perf.run.events import Event, Message, Severity
from flashinfer_perf.run.ranks import Ranks


class Sink(Protocol):
    """Where events go. A sink never measures."""

    def take(self, event: Event) -> None:
        """Writes down what it cares about."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class SinkFailed(Exception):
    """A result file can no longer be written; the run goes on without it."""


class Session:
    """Runs items in order and hands every event to every sink."""

    def __init__(self, sinks: Sequence[Sink], ranks: Ranks) -> None:
        self._sinks = list(sinks)
        self._ranks = ranks
        self._tally = Tally()
        self._lost_results = False
        self._settled: set[str] = set()
        self._said: set[Message] = set()

    def run(self, items: Sequence[Case | InvalidLine]) -> int:
        """The exit status, after all items or Ctrl-C."""
        position, owed = 0, []
        try:
            for position, item in enumerate(items):
                owed = list(asked_for(item)) if isinstance(item, Case) else []
                for event in self._events(item, position + 1, len(items)):
                    with _held_back():
                        if isinstance(event, Record):
                            owed = [] if isinstance(item, Case) and not item.backends else _without(owed, event.backend)
                        self._hand_out(event)
                self._settle(item)
        except KeyboardInterrupt as interrupt:
            with _second_one_ends_at_once():
                self._give_up(items, position, owed, interrupt)
                self._close()
            return INTERRUPTED
        finally:
            self._close()
            gc.unfreeze()
        status = self._tally.exit_status
        return FAILURE if self._lost_results and status == SUCCESS else status

    def _settle(self, item: Case | InvalidLine) -> None:
        """After a routine's first case, exempts what it imported from garbage collection: a collection after each
        backend then costs microseconds, not a tenth of a second.
        """
        if isinstance(item, Case) and item.routine.name not in self._settled:
            self._settled.add(item.routine.name)
            gc.collect()
            gc.freeze()

    def _events(self, item: Case | InvalidLine, number: int, total: int) -> Iterator[Event]:
        if isinstance(item, Case):
            yield from run_case(item, self._ranks, number, total)
            return
        yield Message(Severity.ERROR, f"Error running test: {item.text}")
        yield Message(Severity.ERROR, f"Error: {item.origin}: {item.reason}")
        yield Record(Status.INVALID, item.reason, item.routine, "", origin=item.origin, repro_command=item.text)

    def _give_up(
        self, items: Sequence[Case | InvalidLine], position: int, owed: list[str], interrupt: KeyboardInterrupt
    ) -> None:
        """Leaves a record for everything that was asked for and did not come to its end."""
        self._hand_out(Message(Severity.ERROR, "Interrupted. What was measured is kept."))
        current = items[position]
        if isinstance(current, Case):
            for backend in owed:
                self._hand_out(unfinished(current, backend, interrupt))
        for item in items[position + 1 :]:
            if isinstance(item, Case):
                for backend in asked_for(item):
                    self._hand_out(unfinished(item, backend, interrupt))
            else:
                for event in self._events(item, 0, 0):
                    self._hand_out(event)

    def _hand_out(self, event: Event) -> None:
        if isinstance(event, Record):
            self._tally.add(event)
        elif isinstance(event, Message) and event.once:
            if event in self._said:
                return
            self._said.add(event)
        for sink in list(self._sinks):
            try:
                sink.take(event)
            except SinkFailed as failure:
                self._drop(sink, failure)

    def _close(self) -> None:
        """The last one first, so that the console, which is the first, can still say what was lost."""
        while self._sinks:
            sink = self._sinks.pop()
            try:
                sink.close()
            except SinkFailed as failure:
                self._say_what_was_lost(failure)

    def _drop(self, sink: Sink, failure: SinkFailed) -> None:
        self._sinks.remove(sink)
        self._say_what_was_lost(failure)

    def _say_what_was_lost(self, failure: SinkFailed) -> None:
        self._lost_results = True
        self._hand_out(Message(Severity.ERROR, str(failure)))


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C waits until an event is in every file that it belongs in; a second one does not wait."""
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        signal.signal(signal.SIGINT, interrupt)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
    if came:
        interrupt(*came[0])


@contextlib.contextmanager
def _second_one_ends_at_once() -> Iterator[None]:
    """Ctrl-C as the system handles it, for as long as the last rows are written. Only the main thread may ask that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _without(names: list[str], name: str) -> list[str]:
    return [other for other in names if other != name]
