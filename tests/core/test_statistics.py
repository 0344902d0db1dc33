from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flashinfer_perf.core.statistics import (
    COVERAGE,
    count_outliers,
    interval_rank,
    median_interval,
    percentile,
    relative_half_width,
    summarise,
)

TIMES = st.floats(1e-6, 1e6)
SAMPLES = st.lists(TIMES, min_size=1, max_size=60)


@given(SAMPLES, st.floats(0, 100) | st.sampled_from([0, 5, 25, 50, 75, 95, 100]))
def test_percentiles_are_numpys(samples, percent):
    assert percentile(sorted(samples), percent) == pytest.approx(np.percentile(samples, percent), rel=1e-9)


@given(SAMPLES)
def test_a_summary_agrees_with_numpy(samples):
    summary = summarise(samples)
    assert summary.samples == len(samples)
    assert summary.median_ms == pytest.approx(np.median(samples), rel=1e-12)
    assert summary.mean_ms == pytest.approx(np.mean(samples), rel=1e-9)
    assert summary.std_ms == pytest.approx(np.std(samples), rel=1e-6, abs=1e-9 * max(samples))
    assert (summary.min_ms, summary.max_ms) == (min(samples), max(samples))
    assert summary.p05_ms == pytest.approx(np.percentile(samples, 5), rel=1e-9)
    assert summary.p95_ms == pytest.approx(np.percentile(samples, 95), rel=1e-9)


def test_the_standard_deviation_is_the_populations():
    assert summarise([1.0, 3.0]).std_ms == 1.0


def test_a_tiny_spread_on_a_large_time_is_not_lost():
    assert summarise([1e6, 1e6 + 1e-3]).std_ms == pytest.approx(5e-4, rel=1e-3)


def test_one_sample_is_a_summary_without_spread():
    summary = summarise([2.0])
    assert (summary.median_ms, summary.std_ms, summary.ci_low_ms, summary.ci_high_ms) == (2.0, 0.0, 2.0, 2.0)
    assert summary.outliers == 0


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(samples, random):
    shuffled = random.sample(samples, len(samples))
    assert summarise(shuffled) == summarise(samples)


@given(SAMPLES, st.integers(-10, 10))
def test_a_change_of_unit_scales_every_time_and_no_count(samples, exponent):
    factor = 2.0**exponent  # exact in binary, so that equality can be asked for
    before, after = summarise(samples), summarise([sample * factor for sample in samples])
    for name in ("median_ms", "mean_ms", "std_ms", "min_ms", "max_ms", "p05_ms", "p95_ms", "ci_low_ms", "ci_high_ms"):
        assert getattr(after, name) == getattr(before, name) * factor, name
    assert (after.samples, after.outliers) == (before.samples, before.outliers)


@given(SAMPLES)
def test_the_interval_holds_the_median_and_lies_within_the_range(samples):
    summary = summarise(samples)
    assert summary.min_ms <= summary.ci_low_ms <= summary.median_ms <= summary.ci_high_ms <= summary.max_ms


def test_interval_ranks_are_the_narrowest_with_enough_coverage():
    for count in range(1, 2001):
        rank = interval_rank(count)
        coverage_of_rank, of_next = 1 - 2 * stats.binom.cdf([rank - 1, rank], count, 0.5)
        assert coverage_of_rank >= COVERAGE, count
        assert of_next < COVERAGE, count


@pytest.mark.parametrize(("count", "rank"), [(0, 0), (1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (30, 10), (100, 40)])
def test_interval_ranks_are_those_of_the_tables(count, rank):
    assert interval_rank(count) == rank


def test_a_large_number_of_samples_neither_underflows_nor_drifts():
    count = 100_000
    assert interval_rank(count) == stats.binom.ppf(0.025, count, 0.5)


def test_the_interval_is_between_the_ranks():
    samples = [float(value) for value in range(1, 31)]
    assert median_interval(samples) == (10.0, 21.0)
    assert median_interval([1.0, 2.0, 9.0]) == (1.0, 9.0)


DISTRIBUTIONS = {
    "normal": (stats.norm(10, 1), 10),
    "exponential": (stats.expon(), math.log(2)),
    "lognormal": (stats.lognorm(1.5), 1.0),
    "cauchy": (stats.cauchy(5, 2), 5),
    "uniform": (stats.uniform(0, 1), 0.5),
}


@pytest.mark.parametrize("count", [6, 10, 30, 101])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_interval_covers_the_median_as_often_as_promised(name, count):
    distribution, median = DISTRIBUTIONS[name]
    trials = distribution.rvs((4000, count), random_state=count)
    intervals = [median_interval(trial) for trial in np.sort(trials).tolist()]
    covered = sum(low <= median <= high for low, high in intervals) / len(intervals)
    assert 0.945 <= covered <= 0.99


@given(st.lists(TIMES, min_size=6, max_size=60))
def test_the_relative_half_width_is_that_of_the_interval(samples):
    summary = summarise(samples)
    expected = (summary.ci_high_ms - summary.ci_low_ms) / 2 / summary.median_ms
    assert relative_half_width(samples, tick_ms=0.0) == pytest.approx(expected)


@given(st.lists(TIMES, min_size=6, max_size=60), TIMES)
def test_the_relative_half_width_is_never_below_half_a_tick(samples, tick_ms):
    assert relative_half_width(samples, tick_ms) >= tick_ms / 2 / summarise(samples).median_ms


def test_equal_samples_are_known_to_half_a_tick_and_no_better():
    assert relative_half_width([2.0] * 30, tick_ms=0.1) == pytest.approx(0.025)


@pytest.mark.parametrize("count", range(6))
def test_under_six_samples_nothing_is_known(count):
    assert relative_half_width([1.0] * count, tick_ms=0.1) == math.inf


def test_a_median_of_zero_has_no_relative_width():
    assert relative_half_width([0.0] * 10, tick_ms=0.1) == math.inf


@given(SAMPLES)
def test_outliers_lie_outside_tukeys_fences(samples):
    lower, upper = np.percentile(samples, [25, 75])
    slack = 1e-9 * max(samples)
    surely = sum(
        s < lower - 1.5 * (upper - lower) - slack or s > upper + 1.5 * (upper - lower) + slack for s in samples
    )
    maybe = sum(s < lower - 1.5 * (upper - lower) + slack or s > upper + 1.5 * (upper - lower) - slack for s in samples)
    assert surely <= count_outliers(sorted(samples)) <= maybe


def test_a_sample_on_the_fence_is_no_outlier():
    inside = [1.0, 2.0, 3.0, 4.0, 5.0]  # quartiles 2 and 4, fences -1 and 7
    assert count_outliers([-1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0]) == 0
    assert count_outliers(inside) == 0
    assert count_outliers([1.0, 2.0, 3.0, 4.0, 100.0]) == 1
    assert count_outliers([-100.0, 2.0, 3.0, 4.0, 5.0]) == 1


def test_outliers_are_counted_not_dropped():
    summary = summarise([1.0] * 9 + [100.0])
    assert (summary.outliers, summary.samples, summary.max_ms, summary.mean_ms) == (1, 10, 100.0, 10.9)
