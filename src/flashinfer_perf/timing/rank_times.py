"""Times of several ranks: a call that they make together is over when the last of them is done."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from flashinfer_perf.core.record import Measurement

RANK_FACTS = ("rank_min", "rank_median", "rank_max", "rank_skew")
"""Milliseconds: the smallest, the middle and the largest of the ranks' own medians; and by how much the last rank was
later than the first, in the median.
"""


class RankTimes:
    """Samples as they come in.

    Attributes:
        totals: of each sample, the longest time that a rank took from the common start to its end.
        phases: of each sample and phase, the longest that a rank took; other ranks may be the slowest of other phases.
    """

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.phases: list[tuple[float, ...]] = []
        self._by_rank: list[list[float]] = []

    def add(self, by_rank: Sequence[Sequence[tuple[float, ...]]]) -> None:
        """Takes one batch: for each rank its samples, for each of those its phases, in milliseconds."""
        sums = [[sum(phases) for phases in samples] for samples in by_rank]
        self._by_rank = [old + new for old, new in zip(self._by_rank or [[] for _ in sums], sums, strict=True)]
        self.totals += [max(each) for each in zip(*sums, strict=True)]
        self.phases += [tuple(map(max, zip(*each, strict=True))) for each in zip(*by_rank, strict=True)]

    def facts(self) -> dict[str, float]:
        """How far the ranks are apart; empty for one rank."""
        if len(self._by_rank) < 2:
            return {}
        medians = sorted(median(times) for times in self._by_rank)
        skew = median(max(each) - min(each) for each in zip(*self._by_rank, strict=True))
        return dict(zip(RANK_FACTS, (medians[0], median(medians), medians[-1], skew), strict=True))


def rank_line(measured: Measurement) -> str:
    """'4 ranks: medians 0.14, 0.142, 0.145 ms (fastest, middle, slowest rank); they end 0.004 ms apart'; of one rank
    how to start several, without which nothing leaves it.
    """
    if measured.ranks == 1:
        return "1 rank, which exchanges with none; start several with mpirun -np N or torchrun --nproc-per-node N"
    least, middle, largest, skew = (measured.timer_facts[name] for name in RANK_FACTS)
    return (
        f"{measured.ranks} ranks: medians {least:.4g}, {middle:.4g}, {largest:.4g} ms (fastest, middle, slowest rank); "
        f"they end {skew:.3g} ms apart"
    )
