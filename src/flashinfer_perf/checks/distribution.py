"""Sampled tokens: each must be possible, and many together must follow the exact distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

FALSE_ALARM = 1e-6
"""Probability that a correct sampler fails the chi-square test: once in a million cases."""
MIN_EXPECTED = 10.0
"""Bins are pooled until each expects that many draws; below it the chi-square distribution is a poor approximation."""
WANTED_DRAWS = 20_000
MAX_CALLS = 64
"""A call draws one token a row; small batches get fewer draws rather than a check that takes longer than the rest."""


@dataclass(frozen=True)
class Distribution:
    """Passes when every token lies in the support and draws from row 0, replicated, follow its distribution.

    The truth is a tensor of probabilities in fp64, a row per token; tokens of probability zero are impossible, NaN
    marks those too close to a threshold to say, which are allowed and not counted.
    """

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        tokens, probabilities = actual[name].to(torch.int64), expected[name]
        if tokens.shape != probabilities.shape[:1]:
            detail = f"shape {tuple(tokens.shape)} instead of {tuple(probabilities.shape[:1])}"
            return Finding(name, False, detail, len(probabilities), len(probabilities))
        wrong = ~possible(tokens, probabilities)
        return Finding(name, not bool(wrong.any()), "tokens inside the support", tokens.numel(), int(wrong.sum()))

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        if launch.draw is None:
            return Finding(name, False, "the backend offers no draw(seed, offset), so its distribution is unchecked")
        row, batch = expected[name][0], len(expected[name])
        calls = min(math.ceil(WANTED_DRAWS / batch), MAX_CALLS)
        tokens = torch.cat([launch.draw(seed, 0).flatten().to(torch.int64) for seed in range(calls)])
        if len(tokens) != calls * batch:
            return Finding(name, False, f"{len(tokens)} tokens in {calls} draws from {batch} rows")
        wrong = ~possible(tokens, row.expand(len(tokens), -1))
        if bool(wrong.any()):
            return Finding(name, False, "draws inside the support", len(tokens), int(wrong.sum()))
        p_value, bins = chi_square(tokens, row)
        detail = f"chi-square of {len(tokens)} draws in {bins} bins: p = {p_value:.3g}, false alarms {FALSE_ALARM:g}"
        return Finding(name, p_value >= FALSE_ALARM, detail, len(tokens), 0)


def possible(tokens: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Which tokens are in range and not impossible; row by row."""
    inside = (tokens >= 0) & (tokens < probabilities.shape[-1])
    own = probabilities.gather(-1, tokens.clamp(0, probabilities.shape[-1] - 1)[:, None])[:, 0]
    return inside & (own != 0)


def chi_square(tokens: torch.Tensor, row: torch.Tensor) -> tuple[float, int]:
    """Pearson's test of draws against a row of probabilities, with the number of bins.

    Returns:
        (p, bins); (1.0, 1) when everything had to be pooled into one bin, or no token's probability is certain.
    """
    from scipy.special import chdtrc

    certain = row.nan_to_num(nan=0.0)
    counted = torch.bincount(tokens, minlength=len(row)).to(torch.float64).to(row.device)
    counted = torch.where(row.isnan(), torch.zeros_like(counted), counted)
    draws = float(counted.sum())
    support = certain.nonzero()[:, 0]
    support = support[certain[support].argsort(descending=True)]  # alike together: else pooling averages weights away
    if not len(support):
        return 1.0, 1
    expected = certain[support] / certain.sum() * draws
    bins = torch.div(expected.cumsum(0), 2 * MIN_EXPECTED, rounding_mode="floor").to(torch.int64)
    bins = pooled(bins, expected)
    expectation = torch.zeros(int(bins.max()) + 1, dtype=torch.float64, device=row.device)
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
