"""The measuring loop: dry runs, then samples until the stop rule has enough."""

from __future__ import annotations

from time import perf_counter

from flashinfer_perf.core.record import Measurement
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.core.stop_rules import StopRule
from flashinfer_perf.timing.rank_times import RankTimes
from flashinfer_perf.timing.target import Target
from flashinfer_perf.timing.timer import Opened


def measure(target: Target, opened: Opened, rule: StopRule, dry_runs: int) -> Measurement:
    """Times a target. Over several ranks each sample is that of the slowest, and all take equally many."""
    timer = opened.timer
    tick_ms = max(target.ranks.all_gather(timer.tick_ms))  # the rule must decide alike on all of them
    timer.sample(dry_runs)
    times = RankTimes()
    began = perf_counter()
    while wanted := rule.wanted(times.totals, elapsed := _elapsed(target, began), tick_ms):
        times.add(target.ranks.all_gather(timer.sample(wanted)))
    return Measurement(
        samples_ms=tuple(times.totals),
        phases_ms=_by_phase(target, times.phases),
        summary=summarise(times.totals),
        timer=timer.name,
        fallback_reason=opened.fallback_reason,
        cache_policy=timer.cache_description,
        tick_ms=tick_ms,
        calls_per_sample=timer.calls_per_sample,
        dry_runs=dry_runs,
        stop_reason=rule.reason(times.totals, elapsed, tick_ms),
        ranks=target.ranks.size,
        timer_facts={**timer.facts, **times.facts()},
        total_name=target.launch.total_name,
    )


def _elapsed(target: Target, began: float) -> float:
    """Seconds since; over several ranks the longest, so that all of them decide alike."""
    return float(max(target.ranks.all_gather(perf_counter() - began)))


def _by_phase(target: Target, taken: list[tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    names = target.launch.phase_names
    return dict(zip(names, zip(*taken, strict=True), strict=True)) if names else {}
