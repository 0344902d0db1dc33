"""Sampled tokens: each must be possible, and many together must follow the exact distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.draws import at_least, chi_square, farthest, strangest
from flashinfer_perf.checks.support import Support
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

FALSE_ALARM = 1e-6
"""Probability that a correct sampler fails one of the statistical tests: once in a million cases."""
TESTS = 4
"""Statistical tests of a case, which share that: frequencies, single tokens, uncertain tokens, rows."""
WANTED_DRAWS = 65_536
"""Enough to find a sampler that takes one token in 2 % of its draws instead of drawing, if that token's probability is
a quarter or less: eight standard deviations.
"""
MOST_CALLS = 4_096
"""A call draws one token a row; small batches get fewer draws rather than a check that takes longer than the rest."""
WANTED_OF_ROWS = 4_096
"""Draws from the rows as they are: what is wrong there is wrong by much."""
ELEMENTS_READ = {"cpu": 1 << 23, "cuda": 1 << 31}
"""What all draws may read, in numbers: seconds of time. Large vocabularies get fewer draws."""
COLLISION = 1e-6
"""Dependence on the seed is judged where a correct sampler repeats all its tokens less often than that."""


@dataclass(frozen=True)
class Distribution:
    """Passes when every token lies in the support, and further calls of the same kernel

    * on the first row, replicated, draw tokens as often as they are probable (chi-square of all, binomial tails of
      each), and uncertain ones not more often than they could be;
    * on the rows as they are draw, from each, tokens of the mean probability that its own distribution gives;
    * with the same seed give the same tokens, and with other seeds other ones.

    The truth is a ``Support``.
    """

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        tokens, support = actual[name].to(torch.int64), expected[name]
        if tokens.shape != (len(support),):
            detail = f"shape {tuple(tokens.shape)} instead of {(len(support),)}"
            return Finding(name, False, detail, len(support), len(support))
        wrong = ~support.allows(tokens)
        return Finding(name, not bool(wrong.any()), "tokens inside the support", tokens.numel(), int(wrong.sum()))

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        if launch.draw is None:
            return Finding(name, False, "the backend offers no draw(seed, offset), so its distribution is unchecked")
        support: Support = expected[name]
        calls = calls_for(*support.weights.shape, device=support.weights.device.type)
        drawn = [launch.draw(seed, 0).flatten().to(torch.int64) for seed in range(calls)]
        tests = (
            lambda: of_right_size(name, drawn, len(support)),
            lambda: inside(name, torch.cat(drawn), support.row(0)),
            lambda: frequencies(name, torch.cat(drawn), support.row(0)),
            lambda: of_single_tokens(name, torch.cat(drawn), support.row(0)),
            lambda: of_uncertain(name, torch.cat(drawn), support.row(0)),
            lambda: repeatable(name, drawn[0], launch.draw(0, 0).flatten().to(torch.int64)),
            lambda: depends_on_seed(name, drawn, likeliest(support.row(0))),
            lambda: of_their_rows(name, launch, support, calls),
        )
        return all_of(name, tests)


def calls_for(rows: int, vocabulary: int, device: str) -> int:
    """How often to draw from so many rows: two times at least."""
    affordable = ELEMENTS_READ[device] // (rows * vocabulary)
    return max(min(math.ceil(WANTED_DRAWS / rows), affordable, MOST_CALLS), 2)


def all_of(name: str, tests: tuple[Callable[[], Finding], ...]) -> Finding:
    """The first test that failed, or what all of them found."""
    found: list[Finding] = []
    for test in tests:
        found.append(test())
        if not found[-1].passed:
            return found[-1]
    said = "; ".join(finding.detail for finding in found if finding.detail)
    elements = max(finding.elements for finding in found)
    return Finding(name, True, said, elements, coverage=said)


def of_right_size(name: str, drawn: list[torch.Tensor], rows: int) -> Finding:
    """A token to a row in every call."""
    sizes = sorted({len(tokens) for tokens in drawn})
    passed = sizes == [rows]
    return Finding(name, passed, "" if passed else f"{sizes} tokens drawn from {rows} rows in {len(drawn)} calls")


def inside(name: str, tokens: torch.Tensor, row: Support) -> Finding:
    """No token that cannot be drawn."""
    clamped = tokens.clamp(0, row.weights.shape[-1] - 1)
    wrong = int(((tokens != clamped) | ~row.possible[0][clamped]).sum())
    return Finding(name, not wrong, "draws outside the support" if wrong else "", len(tokens), wrong)


def frequencies(name: str, tokens: torch.Tensor, row: Support) -> Finding:
    """Tokens come as often as they are probable."""
    p_value, bins = chi_square(tokens, row.laws()[0])
    detail = f"chi-square of {len(tokens)} draws in {bins} bins: p = {p_value:.3g}, false alarms {FALSE_ALARM:g}"
    return Finding(name, p_value >= FALSE_ALARM / TESTS, detail, len(tokens))


def of_single_tokens(name: str, tokens: torch.Tensor, row: Support) -> Finding:
    """None of them comes much too often or too seldom."""
    p_value = strangest(tokens, row.laws()[0])
    detail = "" if p_value >= FALSE_ALARM / TESTS else f"a token comes too often or too seldom: p = {p_value:.3g}"
    return Finding(name, not detail, detail, len(tokens))


def of_uncertain(name: str, tokens: torch.Tensor, row: Support) -> Finding:
    """Tokens too close to a threshold to say do not come more often than if all of them were in."""
    unsure = int((~row.certain[0][tokens]).sum())
    share = float(row.unsure_share()[0])
    if at_least(unsure, len(tokens), share) >= FALSE_ALARM / TESTS:
        return Finding(name, True, "", len(tokens))
    detail = f"{unsure} of {len(tokens)} draws at a threshold, where at most a share of {share:.3g} can be"
    return Finding(name, False, detail, len(tokens), unsure)


def repeatable(name: str, tokens: torch.Tensor, again: torch.Tensor) -> Finding:
    """The same seed gives the same tokens."""
    other = int((tokens != again).sum()) if tokens.shape == again.shape else len(tokens)
    detail = "the same seed gives other tokens" if other else "the same seed gives the same tokens"
    return Finding(name, not other, detail, len(tokens), other)


def depends_on_seed(name: str, drawn: list[torch.Tensor], likeliest: float, what: str = "draws") -> Finding:
    """Not every seed gives the results of the first one. Not judged where that may happen by chance.

    Args:
        drawn: what each seed gave, a row to a result.
        likeliest: the largest probability that any one result can have.
        what: results are called in the finding.
    """
    repeats = sum(len(tokens) for tokens in drawn[1:])
    collision = likeliest**repeats
    if collision > COLLISION:
        reason = f"{repeats} {what} are all the same with a probability of {collision:.2g}"
        return Finding(name, True, f"dependence on the seed not judged: {reason}")
    same = all(torch.equal(tokens, drawn[0]) for tokens in drawn[1:])
    detail = f"{len(drawn)} seeds give the same tokens" if same else "other seeds give other tokens"
    return Finding(name, not same, detail, len(drawn[0]), len(drawn[0]) if same else 0)


def likeliest(row: Support) -> float:
    """The largest probability that a token can have: with none of the uncertain ones in but itself."""
    weights, certain = row.weights[0], float(row.weights[0][row.certain[0]].sum())
    largest = float(torch.where(row.possible[0], weights, torch.zeros_like(weights)).max())
    return min(largest / certain, 1.0) if certain else 1.0


def of_their_rows(name: str, launch: Launch, support: Support, calls: int) -> Finding:
    """The timed call itself, with other seeds: tokens have the mean probability that their own rows give them."""
    rows = len(support)
    if rows == 1:
        return Finding(name, True, "")
    calls = max(min(calls // 4, math.ceil(WANTED_OF_ROWS / rows)), 1)
    tokens = torch.stack([launch.with_seed(seed).flatten().to(torch.int64) for seed in range(calls)])
    wrong = sum(int((~support.allows(row)).sum()) for row in tokens)
    if wrong:
        return Finding(name, False, "draws outside the support of their rows", tokens.numel(), wrong)
    error, variance = off_their_rows(tokens, support)
    if abs(error) <= farthest(variance, FALSE_ALARM / TESTS):
        return Finding(name, True, f"{tokens.numel()} draws fit their own rows", tokens.numel())
    detail = (
        f"draws do not fit their own rows: {error:.3g} from what is expected, with a deviation of {variance**0.5:.3g}"
    )
    return Finding(name, False, detail, tokens.numel(), tokens.numel())


def off_their_rows(tokens: torch.Tensor, support: Support) -> tuple[float, float]:
    """How far the tokens' probabilities, in units of their row's largest, add up to another sum than expected.

    Args:
        tokens: (calls, rows), each in its row's support. Uncertain ones are left out.

    Returns:
        (error of the sum, variance of the sum).
    """
    laws = support.laws()
    largest = laws.amax(dim=-1)
    largest = torch.where(largest > 0, largest, 1.0)  # of a row in which nothing is certain
    scores = (laws / largest[:, None]).gather(-1, tokens.T).T
    mean = laws.square().sum(dim=-1) / largest
    variance = laws.pow(3).sum(dim=-1) / largest.square() - mean.square()
    counted = support.certain.gather(-1, tokens.T).T
    error = torch.where(counted, scores - mean, torch.zeros_like(scores))
    return float(error.sum()), float((variance.clamp(min=0) * counted.sum(dim=0)).sum())
