"""Statistics of draws, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.draws import MIN_EXPECTED, at_least, chi_square, farthest, pooled, strangest

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


def test_tokens_without_a_probability_are_not_counted():
    row = torch.tensor([0.5, 0, 0.5], dtype=torch.float64)
    tokens = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 5000, 100]))
    assert chi_square(tokens, row) == (pytest.approx(1), 2)
    assert strangest(tokens, row) == 1.0


@pytest.mark.parametrize("row", [[1.0, 0.0], [0.5, 0.5]])
def test_too_few_draws_for_two_bins_say_nothing(row: list[float]):
    assert chi_square(torch.zeros(8, dtype=torch.int64), torch.tensor(row, dtype=torch.float64)) == (1.0, 1)


def test_a_row_of_which_nothing_is_certain_says_nothing():
    row = torch.zeros(3, dtype=torch.float64)
    assert chi_square(torch.tensor([0, 1, 1]), row) == (1.0, 1)
    assert strangest(torch.tensor([0, 1, 1]), row) == 1.0


# ---- Pooling ----


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


# ---- Single tokens, and bounds ----


@pytest.mark.parametrize(("successes", "trials", "share"), [(1, 10, 0.1), (10, 10, 0.5), (300, 1000, 0.25)])
def test_binomial_tails_are_scipys(successes: int, trials: int, share: float):
    assert at_least(successes, trials, share) == pytest.approx(scipy.stats.binom.sf(successes - 1, trials, share))


def test_no_success_and_a_share_of_one_are_certain():
    assert at_least(0, 10, 0.0) == at_least(0, 0, 0.5) == at_least(10, 10, 1.0) == 1.0
    assert at_least(1, 10, 0.0) == 0.0


def test_a_token_that_comes_too_often_is_strange_and_the_bound_holds_for_all_of_them():
    row = torch.full((1000,), 0.001, dtype=torch.float64)
    tokens = torch.arange(1000).repeat(5)
    assert strangest(tokens, row) == 1.0
    tokens[:60] = 7
    expected = scipy.stats.binom.sf(int((tokens == 7).sum()) - 1, 5000, 0.001) * 2000
    assert strangest(tokens, row) == pytest.approx(expected)


def test_a_token_that_never_comes_is_strange():
    row = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert strangest(torch.zeros(100, dtype=torch.int64), row) == pytest.approx(4 * 0.5**100, rel=1e-6)


def test_correct_draws_are_not_strange():
    row = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    row /= row.sum()
    for seed in range(50):
        tokens = torch.multinomial(row, 2000, replacement=True, generator=torch.Generator().manual_seed(seed))
        assert strangest(tokens, row) > 1e-4


@given(variance=st.floats(0, 1e6), alarm=st.floats(1e-9, 0.1))
def test_the_bound_of_a_sum_is_bernsteins(variance: float, alarm: float):
    bound = farthest(variance, alarm)
    assert 2 * np.exp(-(bound**2) / (2 * (variance + bound / 3))) == pytest.approx(alarm, rel=1e-6)
