"""Statistics of draws: how likely a correct sampler is to give what was seen."""

from __future__ import annotations

import math

from flashinfer_perf.lazy import torch

MIN_EXPECTED = 10.0
"""Bins are pooled until each expects that many draws; below it the chi-square distribution is a poor approximation."""


def chi_square(tokens: torch.Tensor, law: torch.Tensor) -> tuple[float, int]:
    """Pearson's test of draws against a distribution.

    Args:
        tokens: (draws,) integers; those of probability zero are left out: they are judged elsewhere.
        law: (n,) fp64 probabilities.

    Returns:
        (p, bins); (1.0, 1) when everything had to be pooled into one bin, or nothing has a probability.
    """
    from scipy.special import chdtrc

    counted = torch.bincount(tokens, minlength=len(law)).to(torch.float64).to(law.device)
    support = law.nonzero()[:, 0]
    support = support[law[support].argsort(descending=True)]  # alike together: else pooling averages weights away
    draws = float(counted[support].sum())
    if not len(support) or not draws:
        return 1.0, 1
    expected = law[support] / law.sum() * draws
    bins = torch.div(expected.cumsum(0), 2 * MIN_EXPECTED, rounding_mode="floor").to(torch.int64)
    bins = pooled(bins, expected)
    expectation = torch.zeros(int(bins.max()) + 1, dtype=torch.float64, device=law.device)
    observation = expectation.clone()
    expectation.index_add_(0, bins, expected)
    observation.index_add_(0, bins, counted[support])
    statistic = float(((observation - expectation) ** 2 / expectation).sum())
    freedom = len(expectation) - 1
    return (float(chdtrc(freedom, statistic)) if freedom else 1.0), len(expectation)


def pooled(bins: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Bins renumbered without gaps, those that expect too few draws joined to the one before."""
    _, bins = torch.unique_consecutive(bins, return_inverse=True)
    size = torch.zeros(int(bins.max()) + 1, dtype=torch.float64, device=bins.device).index_add_(0, bins, expected)
    large = (size >= MIN_EXPECTED).to(torch.int64)
    return (large.cumsum(0) - 1).clamp(min=0)[bins]


def at_least(successes: int, trials: int, share: float) -> float:
    """Probability of so many successes or more among independent trials, each with a chance of ``share``."""
    from scipy.special import bdtrc

    if not successes:
        return 1.0
    return float(bdtrc(successes - 1, trials, min(max(share, 0.0), 1.0)))


def strangest(tokens: torch.Tensor, law: torch.Tensor) -> float:
    """Probability that any single token comes so often, or so seldom, as the strangest one did.

    Exact binomial tails of each token, times the number of tails (Bonferroni). It sees a kernel that now and then
    takes one token too often, which the chi-square spreads over all bins.

    Args:
        tokens: (draws,) integers; those of probability zero are left out.
        law: (n,) fp64 probabilities.
    """
    from scipy.special import bdtr, bdtrc

    counted = torch.bincount(tokens, minlength=len(law)).cpu().numpy()
    shares = law.cpu().numpy()
    counted, shares = counted[shares > 0], shares[shares > 0].clip(max=1.0)
    draws = int(counted.sum())
    if not draws:
        return 1.0
    more = bdtrc((counted - 1).clip(min=0).astype(float), draws, shares)[counted > 0]
    less = bdtr(counted.astype(float), draws, shares)
    return min(1.0, 2 * len(counted) * float(min(less.min(), more.min())))


def farthest(variance: float, false_alarm: float) -> float:
    """How far a sum of independent numbers may be from its expectation, in either direction.

    Each lies within 1 of its own expectation, and their variances add up to ``variance``. Bernstein's inequality
    (Boucheron, Lugosi, Massart: Concentration Inequalities, section 2.8), which holds for any number of draws.
    """
    logarithm = math.log(2 / false_alarm)
    return logarithm / 3 + math.sqrt((logarithm / 3) ** 2 + 2 * variance * logarithm)
