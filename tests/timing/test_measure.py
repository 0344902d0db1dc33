from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from flashinfer_perf.core.record import Measurement
from flashinfer_perf.core.stop_rules import FixedNumber, TargetPrecision, TimeBudget
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.ranks import Ranks, SingleRank
from flashinfer_perf.timing import measure as module
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.measure import measure
from flashinfer_perf.timing.target import Target
from flashinfer_perf.timing.timer import Opened
from tests.fakes import on_two_ranks


class Scripted:
    """A clock that shows times from a list, over and over, and notes what it was asked for."""

    name, calls_per_sample = "scripted", 4
    cache_description = "cold, by script"
    facts = {"gate": "open"}  # noqa: RUF012

    def __init__(self, times: Iterable[float | tuple[float, ...]], tick_ms: float = 1e-3) -> None:
        self._times = [time if isinstance(time, tuple) else (time,) for time in times]
        self.tick_ms = tick_ms
        self.asked: list[int] = []
        self._taken = 0

    def sample(self, count: int) -> list[tuple[float, ...]]:
        if self.asked:  # dry runs do not use up the script
            self._taken += count
        start = self._taken - count if self.asked else 0
        self.asked.append(count)
        return [self._times[number % len(self._times)] for number in range(start, start + count)]


def measured(timer: Scripted, rule: Any, dry_runs: int = 5, ranks: Ranks | None = None, **launch: Any) -> Measurement:
    target = Target(Launch(**(launch or {"fn": lambda: None})), (), Warm(), ranks or SingleRank())
    return measure(target, Opened(timer, "no better one"), rule, dry_runs)  # type: ignore[arg-type]


def test_dry_runs_come_first_and_do_not_count():
    timer = Scripted([1.0, 2.0, 3.0])
    found = measured(timer, FixedNumber(3), dry_runs=5)
    assert timer.asked == [5, 3]
    assert found.samples_ms == (1.0, 2.0, 3.0)
    assert (found.dry_runs, found.stop_reason) == (5, "num_iters 3")


def test_the_measurement_says_what_it_is():
    found = measured(Scripted([2.0]), FixedNumber(4))
    assert (found.timer, found.fallback_reason) == ("scripted", "no better one")
    assert (found.cache_policy, found.timer_facts) == ("cold, by script", {"gate": "open"})
    assert (found.tick_ms, found.calls_per_sample, found.ranks) == (1e-3, 4, 1)
    assert (found.summary.median_ms, found.summary.samples) == (2.0, 4)
    assert found.phases_ms == {}


def test_phases_are_kept_apart_and_summed():
    phases = (Phase("dispatch", lambda _: None), Phase("combine", lambda _: None))
    found = measured(Scripted([(1.0, 0.5), (2.0, 0.25)]), FixedNumber(2), phases=phases)
    assert found.phases_ms == {"dispatch": (1.0, 2.0), "combine": (0.5, 0.25)}
    assert found.samples_ms == (1.5, 2.25)


def test_a_precision_is_measured_in_growing_batches_until_it_is_reached():
    timer = Scripted([1.0, 1.1, 0.9, 1.05, 0.95])
    found = measured(timer, TargetPrecision(0.03))
    batches = timer.asked[1:]
    assert batches[0] == 10
    assert batches[1:] == sorted(batches[1:])
    assert len(found.samples_ms) == sum(batches)
    half_width = (found.summary.ci_high_ms - found.summary.ci_low_ms) / 2
    assert half_width / found.summary.median_ms <= 0.03
    assert found.stop_reason.startswith("target_precision 0.03 reached")


def test_a_time_budget_ends_what_would_go_on(monkeypatch: pytest.MonkeyPatch):
    seconds = iter(range(1000))
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(seconds)))
    found = measured(Scripted([1.0]), TimeBudget(3.0, FixedNumber(10**6)))
    assert 1 <= len(found.samples_ms) < 10**6
    assert found.stop_reason == "max_time 3 s spent"


def test_at_least_one_sample_is_taken_however_little_time_there_is(monkeypatch: pytest.MonkeyPatch):
    seconds = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(seconds)))
    assert measured(Scripted([1.0]), TimeBudget(0.001, FixedNumber(100))).samples_ms == (1.0,)


# ---- two ranks ----


def test_every_sample_is_that_of_the_slowest_rank():
    scripts = [[1.0, 5.0, 2.0], [4.0, 3.0, 2.5]]
    found = on_two_ranks(lambda ranks: measured(Scripted(scripts[ranks.rank]), FixedNumber(3), ranks=ranks))
    assert [each.samples_ms for each in found] == [(4.0, 5.0, 2.5)] * 2
    assert [each.ranks for each in found] == [2, 2]


def test_a_phase_is_that_of_the_slowest_rank_too():
    scripts = [[(1.0, 9.0)], [(4.0, 3.0)]]  # neither rank takes the 13 ms that the slowest phases add up to
    phases = (Phase("dispatch", lambda _: None), Phase("combine", lambda _: None))

    def work(ranks: Ranks) -> Measurement:
        return measured(Scripted(scripts[ranks.rank]), FixedNumber(1), ranks=ranks, phases=phases)

    for found in on_two_ranks(work):
        assert found.phases_ms == {"dispatch": (4.0,), "combine": (9.0,)}
        assert found.samples_ms == (10.0,)


@pytest.mark.parametrize("ticks", [(1e-3, 0.5), (0.5, 1e-3)])
def test_ranks_decide_alike_though_their_clocks_tick_differently(ticks: tuple[float, float]):
    """Half a tick is the narrowest interval there is: a rank that counts on its own would stop earlier, and the
    other one wait for it for ever.
    """

    def work(ranks: Ranks) -> Measurement:
        timer = Scripted([10.0, 10.01, 9.99], tick_ms=ticks[ranks.rank])
        return measured(timer, TimeBudget(0.2, TargetPrecision(0.01)), ranks=ranks)

    first, second = on_two_ranks(work)
    assert first.samples_ms == second.samples_ms
    assert first.tick_ms == second.tick_ms == 0.5


def test_ranks_decide_alike_though_their_time_runs_differently(monkeypatch: pytest.MonkeyPatch):
    """One rank has spent its time when the other has just begun."""
    import threading

    now = {"slow": 0.0, "fast": 0.0}

    def clock() -> float:
        name = threading.current_thread().name
        now[name] += 1.0 if name == "slow" else 1e-6
        return now[name]

    monkeypatch.setattr(module, "perf_counter", clock)

    def work(ranks: Ranks) -> Measurement:
        threading.current_thread().name = "slow" if ranks.rank else "fast"
        return measured(Scripted([1.0]), TimeBudget(5.0, FixedNumber(10**6)), ranks=ranks)

    first, second = on_two_ranks(work)
    assert len(first.samples_ms) == len(second.samples_ms)
