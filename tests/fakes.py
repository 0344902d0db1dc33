"""Stand-ins: a routine whose kernels are plain functions, a sink that remembers, and ranks that are threads."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.case import Case, line_grammar, make_case
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import backends_flag, flag
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Measurement, Record, Status
from flashinfer_perf.core.requirement import Requirement
from flashinfer_perf.core.routine import Fact, Routine, declared_temporarily, routine
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.events import Event, Message
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown
from flashinfer_perf.run.ranks import Ranks, SingleRank, unless_given_up
from flashinfer_perf.run.session import SinkFailed

CPU = Machine("cpu", "cpu", last_level_cache_bytes=1 << 16)
HOPPER = Machine("cpu", "NVIDIA H200", compute_capability=(9, 0), last_level_cache_bytes=1 << 16)
"""Says that it is a GPU, and keeps its tensors on the CPU."""

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class FakeFlags:
    family: ClassVar[str] = "fake"

    rows: int = flag(4, minimum=1, help="Rows.")
    columns: int = flag(6, minimum=1, help="Columns.")
    enable_pdl: bool = flag(False, help="Some backends ignore it.")
    unread: int = flag(7, help="A flag of the family that the routine does not read.")
    backends: tuple[str, ...] = backends_flag()


class Fake:
    """The routine ``fake``: out = 2 x, residual += x, both (rows, columns) fp32.

    Its backends are plain functions of x, residual and out, declared by ``add``.
    """

    def __init__(self, make: Callable[..., Problem] | None = None, facts: Sequence[Fact] = ()) -> None:
        declare = routine("fake", flags=FakeFlags, uses=("rows", "columns", "enable_pdl"), facts=facts)
        self.routine: Routine = declare(make or make_fake)
        self.problems: list[Problem] = []

    def add(
        self,
        name: str,
        kernel: Kernel | None = None,
        *,
        requires: Sequence[Requirement] = (),
        ignores: Sequence[str] = (),
        error: BaseException | None = None,
        **changes: Any,
    ) -> None:
        """Declares a backend. ``error`` is what its prepare raises; ``changes`` are other fields of its launch."""

        def prepare(flags: FakeFlags, problem: Problem) -> Launch:
            self.problems.append(problem)
            if error is not None:
                raise error
            return replace(fake_launch(problem, kernel or right), **changes)

        self.routine.backend(name, requires=requires, ignores=ignores)(prepare)

    def case(self, flags: str = "", origin: str = "") -> Case:
        """A case on the CPU, timed three times."""
        typed = f"--routine fake --device cpu --num_iters 3 --dry_run_iters 1 {flags}"
        return make_case(self.routine, line_grammar(FakeFlags).parse(typed.split()), origin)

    def events(self, flags: str = "", ranks: Ranks | None = None) -> list[Event]:
        return list(run_case(self.case(flags), ranks or SingleRank()))

    def records(self, flags: str = "", ranks: Ranks | None = None) -> list[Record]:
        return records_in(self.events(flags, ranks))

    def record(self, flags: str = "", ranks: Ranks | None = None) -> Record:
        (record,) = self.records(flags, ranks)
        return record


@contextlib.contextmanager
def fake_routine(**changes: Any) -> Iterator[Fake]:
    """The fake routine, declared for as long as it is needed."""
    with declared_temporarily():
        yield Fake(**changes)


def make_fake(case: FakeFlags, make: TensorFactory) -> Problem:
    """A fake problem."""
    shape = (case.rows, case.columns)
    return Problem(
        tensors={
            "x": make.normal("x", shape, DType.FLOAT32),
            "residual": make.normal("residual", shape, DType.FLOAT32),
        },
        reference=fake_truth,
        work=Work(flops=2 * case.rows * case.columns, bytes=12 * case.rows * case.columns),
        checks={"out": tolerance.for_rounding(DType.FLOAT32), "residual": tolerance.for_rounding(DType.FLOAT32)},
        ranks=make.ranks,
        shown=(Shown("x.shape", shape), Shown("Rows", case.rows, level=1)),
    )


def fake_truth(x: torch.Tensor, residual: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"out": 2 * x.double(), "residual": x.double() + residual.double()}


def fake_launch(problem: Problem, kernel: Kernel) -> Launch:
    tensors = {"x": problem["x"], "residual": problem["residual"], "out": torch.empty_like(problem["x"])}
    return Launch(kernel, kwargs=tensors, mutates=("out", "residual"))


def right(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
    """The kernel as it should be."""
    out.copy_(2 * x)
    residual.add_(x)


def raising(error: BaseException) -> Kernel:
    """A kernel that raises when it is called."""

    def kernel(**_: Any) -> None:
        raise error

    return kernel


def from_call(number: int, later: Kernel, before: Kernel = right) -> Kernel:
    """A kernel that becomes another one from its n-th call on, counted from 1."""
    calls = 0

    def kernel(**tensors: Any) -> Any:
        nonlocal calls
        calls += 1
        return (later if calls >= number else before)(**tensors)

    return kernel


def records_in(events: Sequence[Event]) -> list[Record]:
    return [event for event in events if isinstance(event, Record)]


def texts_in(events: Sequence[Event], *severities: str) -> list[str]:
    """The messages among some events, all or of some severities."""
    messages = [event for event in events if isinstance(event, Message)]
    return [message.text for message in messages if not severities or message.severity.value in severities]


class RecordingSink:
    """Remembers what it is given; raises SinkFailed at its n-th record if told to."""

    def __init__(self, fails_at_record: int = 0, fails_at_close: bool = False) -> None:
        self.events: list[Event] = []
        self.closed = 0
        self._fails_at_record = fails_at_record
        self._fails_at_close = fails_at_close

    def take(self, event: Event) -> None:
        if isinstance(event, Record) and len(self.records) + 1 == self._fails_at_record:
            raise SinkFailed("the disk is full")
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1
        if self._fails_at_close:
            raise SinkFailed("the disk is full at last")

    @property
    def records(self) -> list[Record]:
        return records_in(self.events)


class ThreadRanks:
    """A rank that is a thread. What it says is pickled on the way, as it is between processes."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, slots: list[bytes]) -> None:
        self.rank = rank
        self.size = size
        self._meeting = meeting
        self._slots = slots

    def barrier(self) -> None:
        self.all_gather(None)

    def all_gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = pickle.dumps(value)
        self._meeting.wait()
        values = [pickle.loads(slot) for slot in self._slots]
        self._meeting.wait()  # nobody writes his next value before all have read this one
        return unless_given_up(values, self.rank)

    def abort(self, error: BaseException) -> None:
        self._meeting.abort()


def on_two_ranks(work: Callable[[Ranks], Any]) -> list[Any]:
    """What the work returned on each rank. Ranks that wait for each other in vain fail after some seconds."""
    meeting, slots = threading.Barrier(2, timeout=20), [b"", b""]
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, 2, meeting, slots))
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


def measurement(*samples_ms: float, **changes: Any) -> Measurement:
    """As a timer would give it."""
    values: dict[str, Any] = {
        "samples_ms": samples_ms,
        "phases_ms": {},
        "summary": summarise(samples_ms),
        "timer": "cpu",
        "fallback_reason": "",
        "cache_policy": "warm",
        "tick_ms": 1e-5,
        "calls_per_sample": 1,
        "dry_runs": 5,
        "stop_reason": f"num_iters {len(samples_ms)}",
        "ranks": 1,
    }
    return Measurement(**(values | changes))


def record(**changes: Any) -> Record:
    """A record of something that was measured."""
    values: dict[str, Any] = {
        "status": Status.OK,
        "reason": "",
        "routine": "fake",
        "backend": "torch",
        "measurement": measurement(0.5, 0.25, 0.75),
        "work": Work(flops=1e9, bytes=1e6),
    }
    return Record(**(values | changes))
