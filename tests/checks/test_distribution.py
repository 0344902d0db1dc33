from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.distribution import (
    FALSE_ALARM,
    MAX_CALLS,
    MIN_EXPECTED,
    WANTED_DRAWS,
    Distribution,
    chi_square,
    pooled,
    possible,
)
from flashinfer_perf.core.record import Finding
from flashinfer_perf.run.launch import Launch

VOCABULARY, BATCH, TOP_K = 200, 512, 40
NAN = math.nan
Sampler = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def probabilities() -> torch.Tensor:
    """(batch, vocabulary) of fp64, unlike each other."""
    weights = torch.rand(BATCH, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) ** 2
    return weights / weights.sum(dim=-1, keepdim=True)


def top_k(probs: torch.Tensor, k: int = TOP_K) -> torch.Tensor:
    kept = torch.where(probs >= probs.topk(k, dim=-1).values[:, -1:], probs, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


PROBS = probabilities()
TRUTH = top_k(PROBS)


Weights = Callable[[torch.Tensor], torch.Tensor]


def drawn(weights: Weights) -> Sampler:
    """Draws in proportion to weights of a row, which stand for those of all rows."""

    def sample(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.multinomial(weights(probs[:1])[0], len(probs), replacement=True, generator=generator)

    return sample


correct = drawn(top_k)


def first_rows_draw_for_all(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return correct(probs, generator)[:1].expand(len(probs))


def shifted(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Off by one within the support: the next token that is possible."""
    support = top_k(probs[:1])[0].nonzero()[:, 0]
    place = torch.searchsorted(support, correct(probs, generator))
    return support[(place + 1) % len(support)]


def with_one(token: int) -> Sampler:
    def sample(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        tokens = correct(probs, generator)
        tokens[-1] = token
        return tokens

    return sample


BROKEN: dict[str, Sampler] = {
    "uniform over the support": drawn(lambda probs: (top_k(probs) > 0).double()),
    "uniform over the vocabulary": drawn(torch.ones_like),
    "top-k ignored": drawn(lambda probs: probs),
    "one token too few": drawn(lambda probs: top_k(probs, TOP_K - 1)),
    "one token too many": drawn(lambda probs: top_k(probs, TOP_K + 1)),
    "probabilities squared": drawn(lambda probs: top_k(probs).square()),
    "argmax": lambda probs, generator: probs.argmax(dim=-1),
    "constant": lambda probs, generator: torch.full((len(probs),), int(TRUTH[0].nonzero()[3])),
    "zeros": lambda probs, generator: torch.zeros(len(probs), dtype=torch.int32),
    "one draw for all rows": first_rows_draw_for_all,
    "off by one": shifted,
    "out of range": with_one(VOCABULARY),
    "negative": with_one(-1),
    "another shape": lambda probs, generator: correct(probs, generator)[:0],
}


def launch_of(sampler: Sampler, probs: torch.Tensor = PROBS, seed: int = 0) -> Launch:
    """A launch whose draws replicate the first row, as routines make them."""
    same = probs[:1].expand(len(probs), -1)

    def draw(number: int, offset: int) -> torch.Tensor:
        return sampler(same, torch.Generator().manual_seed(1000 * seed + number + offset))

    return Launch(lambda: None, draw=draw)


def probe(launch: Launch, truth: torch.Tensor = TRUTH) -> Finding:
    finding = Distribution().probe("samples", launch, {"samples": truth})
    assert finding is not None
    return finding


def judge(tokens: torch.Tensor, truth: torch.Tensor = TRUTH) -> Finding:
    return Distribution().judge("samples", {"samples": tokens}, {"samples": truth})


# ---- one output ----


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_of_a_correct_sampler_are_possible_whatever_their_format(dtype: torch.dtype):
    tokens = torch.multinomial(TRUTH, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    finding = judge(tokens.to(dtype))
    assert (finding.passed, finding.elements, finding.differing) == (True, BATCH, 0)


def test_tokens_of_other_rows_or_from_beyond_the_top_k_fail():
    tokens = torch.multinomial(TRUTH, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert not judge(tokens.roll(1)).passed
    beyond = torch.multinomial(PROBS, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert not judge(beyond).passed


@given(row=st.integers(0, BATCH - 1), token=st.integers(-3, VOCABULARY + 3))
def test_a_token_is_possible_exactly_where_its_probability_is_not_zero(row: int, token: int):
    tokens = TRUTH.argmax(dim=-1)
    tokens[row] = token
    inside = 0 <= token < VOCABULARY and bool(TRUTH[row, token] > 0)
    assert judge(tokens).passed is inside


def test_tokens_too_close_to_a_threshold_to_say_are_allowed():
    truth = torch.tensor([[0.5, NAN, 0.0, 0.5]], dtype=torch.float64)
    assert [judge(torch.tensor([token]), truth).passed for token in range(4)] == [True, True, False, True]
    assert possible(torch.tensor([1, 2]), truth.expand(2, -1)).tolist() == [True, False]


def test_another_shape_fails():
    finding = judge(torch.zeros(3, dtype=torch.int32))
    assert (finding.passed, finding.detail) == (False, f"shape (3,) instead of ({BATCH},)")
    assert not judge(torch.zeros(BATCH, 1, dtype=torch.int32)).passed


def test_two_right_samples_need_not_be_equal():
    assert Distribution().agree("samples", {}, {}) is None


# ---- many draws ----


def test_a_correct_sampler_passes_for_200_seeds():
    """Its p values are spread evenly: none is below the threshold, a tenth are below a tenth."""
    values = []
    for seed in range(200):
        finding = probe(launch_of(correct, seed=seed))
        assert finding.passed, finding.detail
        values.append(float(finding.detail.partition("p = ")[2].partition(",")[0]))
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_sampler_fails(how: str):
    assert not probe(launch_of(BROKEN[how])).passed


@pytest.mark.parametrize("how", ["argmax", "constant"])
def test_a_batch_of_one_still_tells_a_sampler_from_a_constant(how: str):
    """64 draws are few, but not none."""
    assert probe(launch_of(correct, PROBS[:1]), TRUTH[:1]).passed
    assert not probe(launch_of(BROKEN[how], PROBS[:1]), TRUTH[:1]).passed


def test_a_sampler_that_cannot_be_asked_for_draws_is_not_passed():
    finding = probe(Launch(lambda: None))
    assert not finding.passed
    assert "draw" in finding.detail


@pytest.mark.parametrize(("batch", "calls"), [(1, MAX_CALLS), (512, 40), (100_000, 1)])
def test_as_many_calls_as_the_draws_need_and_no_more(batch: int, calls: int):
    seeds = []
    truth = torch.tensor([[0.5, 0.5]], dtype=torch.float64).expand(batch, -1)

    def draw(seed: int, offset: int) -> torch.Tensor:
        seeds.append(seed)
        return torch.arange(batch) % 2 if batch > 1 else torch.tensor([seed % 2])

    assert probe(Launch(lambda: None, draw=draw), truth).passed
    assert seeds == list(range(calls))
    assert calls == min(math.ceil(WANTED_DRAWS / batch), MAX_CALLS)


# ---- Pearson's test ----


@given(
    weights=st.lists(st.floats(0.2, 5), min_size=2, max_size=30),
    seed=st.integers(0, 2**31),
)
def test_the_p_value_is_scipys(weights: list[float], seed: int):
    """With bins that need no pooling."""
    row = torch.tensor(weights, dtype=torch.float64)
    row /= row.sum()
    draws = int(100 / float(row.min()))
    tokens = torch.multinomial(row, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
    observed = np.bincount(tokens.numpy(), minlength=len(weights))
    p_value, bins = chi_square(tokens, row)
    assert bins == len(weights)
    expected = scipy.stats.chisquare(observed, row.numpy() * draws)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)


def test_a_known_deviation_has_its_known_p_value():
    row = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    tokens = torch.repeat_interleave(torch.arange(3), torch.tensor([120, 80, 200]))
    assert chi_square(tokens, row)[0] == pytest.approx(scipy.stats.chisquare([120, 80, 200], [100, 100, 200]).pvalue)


def test_tokens_too_close_to_a_threshold_are_not_counted():
    row = torch.tensor([0.25, NAN, 0.25], dtype=torch.float64)
    tokens = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 5000, 100]))
    p_value, bins = chi_square(tokens, row)
    assert (p_value, bins) == (pytest.approx(1), 2)


@pytest.mark.parametrize("row", [[1.0, 0.0], [0.5, 0.5]])
def test_too_few_draws_for_two_bins_say_nothing(row: list[float]):
    assert chi_square(torch.zeros(8, dtype=torch.int64), torch.tensor(row, dtype=torch.float64)) == (1.0, 1)


def test_a_row_of_which_nothing_is_certain_says_nothing():
    row = torch.tensor([NAN, NAN, 0.0], dtype=torch.float64)
    assert chi_square(torch.tensor([0, 1, 1]), row) == (1.0, 1)
    certain = torch.tensor([NAN, 1.0], dtype=torch.float64)
    assert chi_square(torch.tensor([0, 0]), certain) == (1.0, 1)


def test_false_alarms_are_rare_enough_for_a_nightly_run():
    assert FALSE_ALARM <= 1e-6


# ---- pooling ----


@given(
    sizes=st.lists(st.floats(0.001, 60), min_size=1, max_size=60),
    width=st.floats(1, 60),
)
def test_pooling_leaves_no_bin_with_too_few_draws(sizes: list[float], width: float):
    expected = torch.tensor(sizes, dtype=torch.float64)
    bins = pooled(torch.div(expected.cumsum(0), width, rounding_mode="floor").to(torch.int64), expected)
    totals = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins, expected)
    assert len(totals) == 1 or float(totals.min()) >= MIN_EXPECTED
    assert float(totals.sum()) == pytest.approx(float(expected.sum()))
    steps = bins.diff()
    assert int(bins[0]) == 0
    assert bool(((steps == 0) | (steps == 1)).all())  # without gaps, in order


def test_bins_that_are_large_enough_stay_apart():
    expected = torch.tensor([12.0, 30.0, 11.0], dtype=torch.float64)
    assert pooled(torch.tensor([0, 4, 9]), expected).tolist() == [0, 1, 2]


def test_small_bins_join_the_one_before_and_the_first_ones_the_first_large_one():
    expected = torch.tensor([1.0, 2.0, 20.0, 3.0, 15.0, 1.0], dtype=torch.float64)
    assert pooled(torch.arange(6), expected).tolist() == [0, 0, 0, 0, 1, 1]
