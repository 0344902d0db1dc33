"""Summaries of samples. Pure Python, so that records can be read where numpy is not.

Rules, the same everywhere in this program:

* percentiles interpolate linearly between order statistics (numpy's default, Hyndman and Fan's type 7);
* the standard deviation is the population's (``ddof=0``), as in the documents that define the output;
* the interval of the median is the distribution-free one between two order statistics with a coverage of at least
  95 %: ranks k and n + 1 - k for the largest k with P(Binomial(n, 1/2) < k) <= 2.5 %. Under six samples none has that
  coverage; the whole range stands in then and is said to be no interval;
* an outlier lies more than 1.5 interquartile ranges outside the quartiles (Tukey). Outliers are counted, never dropped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95
TUKEY_FENCE = 1.5


@dataclass(frozen=True)
class Summary:
    """All times in milliseconds."""

    samples: int
    median_ms: float
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    p05_ms: float
    p95_ms: float
    ci_low_ms: float
    ci_high_ms: float
    outliers: int


def summarise(samples_ms: Sequence[float]) -> Summary:
    """Raises ValueError without samples."""
    if not samples_ms:
        raise ValueError("no samples")
    ordered = sorted(samples_ms)
    mean = math.fsum(ordered) / len(ordered)
    low, high = median_interval(ordered)
    return Summary(
        samples=len(ordered),
        median_ms=percentile(ordered, 50),
        mean_ms=mean,
        std_ms=math.sqrt(math.fsum((sample - mean) ** 2 for sample in ordered) / len(ordered)),
        min_ms=ordered[0],
        max_ms=ordered[-1],
        p05_ms=percentile(ordered, 5),
        p95_ms=percentile(ordered, 95),
        ci_low_ms=low,
        ci_high_ms=high,
        outliers=count_outliers(ordered),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending samples, interpolated linearly."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    fraction = position - below
    if fraction == 0:
        return ordered[below]
    return ordered[below] + fraction * (ordered[below + 1] - ordered[below])


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of ascending samples; the whole range when there are fewer than six."""
    rank = max(interval_rank(len(ordered)), 1)
    return ordered[rank - 1], ordered[len(ordered) - rank]


@functools.cache
def interval_rank(count: int) -> int:
    """The lower rank (from 1) of the interval of the median; 0 when so few samples have none."""
    tail = (1 - COVERAGE) / 2
    rank, below = 0, 0.0
    while (below := below + _binomial_half(count, rank)) <= tail:
        rank += 1
    return rank


def _binomial_half(count: int, successes: int) -> float:
    """P(Binomial(count, 1/2) = successes), by logarithms so that large counts do not underflow."""
    ways = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return math.exp(ways - count * math.log(2))


def relative_half_width(samples_ms: Sequence[float], tick_ms: float) -> float:
    """Half the interval's width over the median; never below half a clock tick, infinite under six samples."""
    if interval_rank(len(samples_ms)) == 0:
        return math.inf
    ordered = sorted(samples_ms)
    low, high = median_interval(ordered)
    median = percentile(ordered, 50)
    half_width = max((high - low) / 2, tick_ms / 2)
    return half_width / median if median > 0 else math.inf


def count_outliers(ordered: Sequence[float]) -> int:
    """How many ascending samples lie outside Tukey's fences."""
    lower, upper = percentile(ordered, 25), percentile(ordered, 75)
    reach = TUKEY_FENCE * (upper - lower)
    return sum(sample < lower - reach or sample > upper + reach for sample in ordered)
