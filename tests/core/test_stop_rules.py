from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core import stop_rules
from flashinfer_perf.core.statistics import relative_half_width
from flashinfer_perf.core.stop_rules import FIRST_BATCH, FixedNumber, StopRule, TargetPrecision, TimeBudget


@dataclass
class Run:
    """What the measuring loop does, on a clock that only the samples move."""

    rule: StopRule
    times_ms: Iterator[float]
    tick_ms: float = 0.0
    samples: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0

    def finish(self) -> Run:
        while wanted := self.rule.wanted(self.samples, self.elapsed_s, self.tick_ms):
            assert 0 < wanted <= 10**6 - len(self.samples), "a rule must come to an end"
            batch = list(itertools.islice(self.times_ms, wanted))
            self.batches.append(wanted)
            self.samples += batch
            self.elapsed_s += sum(batch) / 1e3
        return self

    @property
    def reason(self) -> str:
        return self.rule.reason(self.samples, self.elapsed_s, self.tick_ms)


def always(time_ms: float) -> Iterator[float]:
    return itertools.repeat(time_ms)


def noisy(relative: float) -> Iterator[float]:
    """Around 1 ms, spread evenly over ± relative: a low-discrepancy sequence, the same every time."""
    return (1 + relative * (2 * (index * 0.6180339887 % 1) - 1) for index in itertools.count())


def growing() -> Iterator[float]:
    """Never settles: each sample is a quarter longer than the last, starting over at a thousand times."""
    return (1.25 ** (index % 31) for index in itertools.count())


@pytest.mark.parametrize("count", [1, 5, 30, 1000])
def test_a_fixed_number_is_taken_in_one_batch(count):
    run = Run(FixedNumber(count), always(1.0)).finish()
    assert run.batches == [count]
    assert run.reason == f"num_iters {count}"


def test_a_fixed_number_asks_only_for_what_is_missing():
    assert FixedNumber(30).wanted([1.0] * 12, 0.0, 0.0) == 18
    assert FixedNumber(30).wanted([1.0] * 31, 0.0, 0.0) == 0


def test_a_precision_is_not_judged_before_the_first_batch():
    run = Run(TargetPrecision(0.01), always(1.0)).finish()
    assert run.batches == [FIRST_BATCH]
    assert run.reason == "target_precision 0.01 reached (0)"
    assert TargetPrecision(0.01).wanted([1.0] * 6, 0.0, 0.0) == FIRST_BATCH - 6


def test_a_precision_is_reached_with_as_many_samples_as_it_takes():
    run = Run(TargetPrecision(0.01), noisy(0.1)).finish()
    assert len(run.samples) > FIRST_BATCH
    assert relative_half_width(run.samples, 0.0) <= 0.01
    assert relative_half_width(run.samples[: -run.batches[-1]], 0.0) > 0.01, "one batch fewer would not have done"
    assert run.reason.startswith("target_precision 0.01 reached (0.00")


def test_a_higher_precision_takes_more_samples():
    coarse, fine = (len(Run(TargetPrecision(goal), noisy(0.1)).finish().samples) for goal in (0.02, 0.002))
    assert fine > 4 * coarse


def test_batches_grow_by_half_of_what_there_is():
    run = Run(TargetPrecision(0.002), noisy(0.1)).finish()
    totals = list(itertools.accumulate(run.batches))
    assert run.batches[0] == FIRST_BATCH
    assert run.batches[1:] == [total // 2 for total in totals[:-1]]


def test_a_precision_that_cannot_be_reached_gives_up_at_the_most_samples(monkeypatch):
    monkeypatch.setattr(stop_rules, "MAX_SAMPLES", 2000)
    run = Run(TargetPrecision(0.01), growing()).finish()
    assert len(run.samples) == 2000
    assert run.reason.startswith("target_precision 0.01 not reached (")
    assert run.reason.endswith(") in 2000 samples")


def test_a_precision_below_half_a_tick_is_not_claimed(monkeypatch):
    monkeypatch.setattr(stop_rules, "MAX_SAMPLES", 500)
    blind = Run(TargetPrecision(0.01), always(1.0), tick_ms=0.1).finish()
    assert blind.reason == "target_precision 0.01 not reached (0.05) in 500 samples"
    seeing = Run(TargetPrecision(0.05), always(1.0), tick_ms=0.1).finish()
    assert seeing.reason == "target_precision 0.05 reached (0.05)"


def test_the_most_samples_are_a_number_that_ends():
    run = Run(TargetPrecision(0.01), always(1.0), tick_ms=0.1).finish()
    assert len(run.samples) == stop_rules.MAX_SAMPLES


@pytest.mark.parametrize("inner", [FixedNumber(1), FixedNumber(30), TargetPrecision(0.01)])
def test_a_time_budget_that_is_not_needed_changes_nothing(inner):
    alone, budgeted = Run(inner, always(1.0)).finish(), Run(TimeBudget(1e9, inner), always(1.0)).finish()
    assert budgeted.samples == alone.samples
    assert budgeted.reason == alone.reason


@pytest.mark.parametrize("seconds", [0.0005, 0.001, 0.0101, 0.5, 3.0])
@pytest.mark.parametrize("time_ms", [0.9, 7.0])
def test_a_time_budget_is_used_up_and_not_exceeded(seconds, time_ms):
    run = Run(TimeBudget(seconds, FixedNumber(10**9)), always(time_ms)).finish()
    assert run.samples
    assert len(run.samples) == max(int(seconds * 1e3 / time_ms * (1 + 1e-9)), 1)
    assert run.elapsed_s <= max(seconds, time_ms / 1e3) + 1e-9
    assert run.reason == f"max_time {seconds:g} s spent"


def test_a_time_budget_takes_one_sample_even_if_that_takes_longer():
    run = Run(TimeBudget(1.0, FixedNumber(30)), always(60_000.0)).finish()
    assert run.samples == [60_000.0]
    assert run.reason == "max_time 1 s spent"


def test_a_time_budget_that_is_overspent_wants_nothing():
    assert TimeBudget(1.0, FixedNumber(30)).wanted([1000.0] * 10, 10.0, 0.0) == 0
    assert TimeBudget(1.0, FixedNumber(30)).wanted([100.0] * 10, 1.0, 0.0) == 0


def test_a_time_budget_over_a_precision_that_cannot_be_reached_ends_in_time():
    run = Run(TimeBudget(0.5, TargetPrecision(0.01)), always(1.0), tick_ms=0.1).finish()
    assert run.elapsed_s <= 0.5 + 1e-9
    assert run.reason == "max_time 0.5 s spent"


def test_the_rule_that_ended_it_is_the_reason():
    enough = Run(TimeBudget(10.0, FixedNumber(30)), always(1.0)).finish()
    assert enough.reason == "num_iters 30"
    precise = Run(TimeBudget(10.0, TargetPrecision(0.05)), noisy(0.1)).finish()
    assert precise.reason.startswith("target_precision 0.05 reached")


def test_a_time_budget_learns_from_the_first_sample():
    run = Run(TimeBudget(0.1, FixedNumber(10**6)), always(1.0)).finish()
    assert run.batches[0] == 1
    assert max(run.batches) <= 100


@given(
    st.floats(1e-3, 10),
    st.lists(st.floats(0.5, 2.0), min_size=5, max_size=20),
    st.sampled_from([FixedNumber(200), TargetPrecision(0.05)]),
)
def test_a_time_budget_exceeds_itself_by_no_more_than_the_unevenness_of_the_samples(seconds, times_ms, inner):
    run = Run(TimeBudget(seconds, inner), itertools.cycle(times_ms)).finish()
    assert run.samples
    assert run.elapsed_s <= max(seconds * max(times_ms) / min(times_ms), 2e-3) + 1e-9


def test_a_clock_that_stood_still_is_no_division_by_zero():
    assert TimeBudget(1.0, FixedNumber(30)).wanted([0.0], 0.0, 0.0) == 29
