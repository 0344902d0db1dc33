"""The order in which the clock of CUDA events enqueues; what it reads is tested on GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing import cuda_event
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.cuda_event import CudaEventTimer
from flashinfer_perf.timing.target import Target


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What happened, with events numbered as they were made."""
    happened: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            self.number = Event.made
            Event.made += 1

        def record(self) -> None:
            happened.append(f"event {self.number}")

        def elapsed_time(self, other: Event) -> float:
            return other.number - self.number + 0.5

    class Gate:
        def __init__(self, *_: object) -> None:
            self.length = SimpleNamespace(accept=lambda held: held)

        def close(self, opened: Event, line_up) -> None:
            happened.append("gate")
            line_up()
            opened.record()

        def held(self) -> bool:
            return True

    cuda = SimpleNamespace(Event=Event, current_device=lambda: 0, synchronize=lambda: happened.append("wait"))
    monkeypatch.setattr(cuda_event, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda_event, "Gate", Gate)
    monkeypatch.setattr(cuda_event, "enqueue_ms", lambda launch: 0.0)
    monkeypatch.setattr(cuda_event, "event_overhead_ms", lambda device: 0.5)
    return happened


def sampled(log: list[str], names: str, line_up) -> list[tuple[float, ...]]:
    phases = tuple(Phase(name, lambda _, name=name: log.append(name)) for name in names)
    timer = CudaEventTimer()
    timer.open(Target(Launch(phases=phases), (), Warm(), SingleRank(), line_up))
    log.clear()
    return timer.sample(1)


def test_ranks_line_up_directly_before_the_start_mark_of_each_phase(log):
    assert sampled(log, "ab", lambda: log.append("line up")) == [(1.0, 1.0)]
    first, second = ["gate", "line up", "event 0", "a", "event 1"], ["line up", "event 2", "b", "event 3"]
    assert log == [*first, *second, "wait"]


def test_a_rank_by_itself_lines_up_with_none(log):
    assert sampled(log, "a", None) == [(1.0,)]
    assert log == ["gate", "event 0", "a", "event 1", "wait"]
