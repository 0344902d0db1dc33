from __future__ import annotations

from typing import Any

import pytest
import torch

from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing import cpu
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.cpu import CpuTimer, clock_tick_ms
from flashinfer_perf.timing.target import Target


class Counting(Warm):
    """A cache policy that counts how often it is asked."""

    description = "counted"

    def __init__(self) -> None:
        self.asked = 0

    def prepare(self) -> None:
        self.asked += 1


class Clock:
    """In place of ``perf_counter_ns``: each reading is so much later than the one before."""

    def __init__(self, *steps_ns: int) -> None:
        self._now, self._steps = 0, list(steps_ns)
        self.readings = 0

    def __call__(self) -> int:
        self._now += self._steps[self.readings % len(self._steps)]
        self.readings += 1
        return self._now


def opened(launch: Launch, cache: Any = None) -> CpuTimer:
    timer = CpuTimer()
    timer.open(Target(launch, (), cache or Warm(), SingleRank()))
    return timer


def test_every_sample_is_one_call_made_ready_for():
    calls: list[int] = []
    cache = Counting()
    timer = opened(Launch(lambda x: calls.append(cache.asked), kwargs={"x": 1}), cache)
    assert len(timer.sample(2)) == 2
    assert len(timer.sample(3)) == 3
    assert timer.sample(0) == []
    assert calls == [1, 2, 3, 4, 5]
    assert timer.calls_per_sample == 1


def test_a_time_is_the_difference_of_two_readings_in_milliseconds(monkeypatch: pytest.MonkeyPatch):
    timer = opened(Launch(lambda: None))
    monkeypatch.setattr(cpu, "perf_counter_ns", Clock(100, 2_500_000))
    assert timer.sample(2) == [(2.5,), (2.5,)]


def test_preparing_is_outside_the_time(monkeypatch: pytest.MonkeyPatch):
    """Nothing lies between the readings but the call."""
    clock = Clock(1_000_000)
    seen: list[tuple[str, int]] = []

    class Cache(Counting):
        def prepare(self) -> None:
            seen.append(("prepare", clock.readings))

    timer = opened(Launch(lambda: seen.append(("call", clock.readings))), Cache())
    monkeypatch.setattr(cpu, "perf_counter_ns", clock)
    timer.sample(1)
    assert seen == [("prepare", 0), ("call", 1)]
    assert clock.readings == 2


def test_phases_have_a_time_each_and_hand_on_their_results(monkeypatch: pytest.MonkeyPatch):
    phases = (Phase("a", lambda before, x: [before, x]), Phase("b", lambda before, x: [*before, x + 1]))
    timer = opened(Launch(phases=phases, kwargs={"x": 1}, returns=("p", "q", "r")))
    monkeypatch.setattr(cpu, "perf_counter_ns", Clock(0, 1_000_000, 500_000, 3_000_000))
    assert timer.sample(1) == [(1.0, 3.0)]


def test_ranks_wait_for_each_other_before_each_phase(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    class Watched(SingleRank):
        def barrier(self) -> None:
            seen.append("barrier")

    phases = (Phase("a", lambda _: seen.append("a")), Phase("b", lambda _: seen.append("b")))
    timer = CpuTimer()
    timer.open(Target(Launch(phases=phases), (), Warm(), Watched()))
    timer.sample(1)
    assert seen == ["barrier", "a", "barrier", "b"]


def test_the_last_outputs_are_those_of_the_last_call():
    numbers = iter(range(100))
    out = torch.zeros(1)

    def kernel(out: torch.Tensor) -> torch.Tensor:
        number = next(numbers)
        out.fill_(10 * number)
        return torch.tensor([number])

    timer = opened(Launch(kernel, kwargs={"out": out}, mutates=("out",), returns=("number",)))
    timer.sample(5)
    last = timer.last_outputs()
    assert {name: int(tensor) for name, tensor in last.items()} == {"number": 4, "out": 40}


def test_an_output_is_released_before_the_next_call_makes_one():
    """Two of them may not fit, and allocating where the last one still lies is not what is to be timed."""
    import weakref

    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def kernel() -> torch.Tensor:
        alive.extend(reference() is not None for reference in made[-1:])
        output = torch.zeros(1)
        made.append(weakref.ref(output))
        return output

    timer = opened(Launch(kernel, returns=("out",)))
    timer.sample(3)
    assert alive == [False, False]
    assert made[-1]() is not None
    timer.close()
    assert made[-1]() is None


def test_the_clock_says_what_was_done_about_the_cache():
    timer = opened(Launch(lambda: None), Counting())
    assert timer.cache_description == "counted"
    assert timer.facts == {}


def test_it_must_be_opened_first():
    with pytest.raises(AssertionError, match="open"):
        CpuTimer().sample(1)


def test_closing_twice_is_closing_once():
    timer = opened(Launch(lambda: None))
    timer.close()
    timer.close()


def test_an_exception_in_a_call_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        opened(Launch(lambda: 1 / 0)).sample(1)


@pytest.mark.parametrize(("steps", "tick_ms"), [((50,), 5e-5), ((0, 0, 0, 40, 0, 70), 4e-5), ((0,), 1e-6)])
def test_the_tick_is_the_smallest_difference_that_is_one(
    steps: tuple[int, ...], tick_ms: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu, "perf_counter_ns", Clock(*steps))
    assert clock_tick_ms.__wrapped__() == pytest.approx(tick_ms)


def test_this_machines_clock_ticks():
    assert 0 < CpuTimer().tick_ms < 1000
