from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.distribution import (
    FALSE_ALARM,
    MOST_CALLS,
    Distribution,
    calls_for,
    depends_on_seed,
    likeliest,
    off_their_rows,
)
from flashinfer_perf.checks.support import Support, everything
from flashinfer_perf.core.record import Finding
from flashinfer_perf.run.launch import Launch

VOCABULARY, BATCH, TOP_K = 200, 512, 40
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


def by_rows(truth: torch.Tensor, seed: int) -> torch.Tensor:
    """A token of each row, by other random numbers than those that the probabilities were made of."""
    return torch.multinomial(truth, 1, generator=torch.Generator().manual_seed(1_000_000 + seed))[:, 0]


def launch_that(sampler: Sampler, probs: torch.Tensor = PROBS, seed: int = 0) -> Launch:
    """A launch whose draws replicate the first row, as routines make them; the rows as they are are drawn rightly."""
    same = probs[:1].expand(len(probs), -1)
    rows = top_k(probs) if probs.shape[1] == VOCABULARY else probs

    def draw(number: int, offset: int) -> torch.Tensor:
        return sampler(same, torch.Generator().manual_seed(10_000 * seed + number + offset))

    return Launch(lambda seed: by_rows(rows, seed), kwargs={"seed": 1}, draw=draw)


def probe(launch: Launch, truth: torch.Tensor | Support = TRUTH) -> Finding:
    truth = truth if isinstance(truth, Support) else everything(truth)
    finding = Distribution().probe("samples", launch, {"samples": truth})
    assert finding is not None
    return finding


def judge(tokens: torch.Tensor, truth: torch.Tensor | Support = TRUTH) -> Finding:
    truth = truth if isinstance(truth, Support) else everything(truth)
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
    weights = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)
    truth = Support(weights, weights > 0.3, weights > 0.15)
    assert [judge(torch.tensor([token]), truth).passed for token in range(4)] == [True, True, True, False]


def test_another_shape_fails():
    finding = judge(torch.zeros(3, dtype=torch.int32))
    assert (finding.passed, finding.detail) == (False, f"shape (3,) instead of ({BATCH},)")
    assert not judge(torch.zeros(BATCH, 1, dtype=torch.int32)).passed


def test_two_right_samples_need_not_be_equal():
    assert Distribution().agree("samples", {}, {}) is None


# ---- many draws ----


def test_a_correct_sampler_passes_for_60_seeds():
    """Its p values are spread evenly: none is below the threshold, a tenth are below a tenth."""
    values = []
    for seed in range(60):
        finding = probe(launch_that(correct, seed=seed))
        assert finding.passed, finding.detail
        values.append(float(finding.detail.partition("p = ")[2].partition(",")[0]))
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_sampler_fails(how: str):
    assert not probe(launch_that(BROKEN[how])).passed


@pytest.mark.parametrize("how", ["argmax", "constant"])
def test_a_batch_of_one_still_tells_a_sampler_from_a_constant(how: str):
    assert probe(launch_that(correct, PROBS[:1]), TRUTH[:1]).passed
    assert not probe(launch_that(BROKEN[how], PROBS[:1]), TRUTH[:1]).passed


def test_a_sampler_that_cannot_be_asked_for_draws_is_not_passed():
    finding = probe(Launch(lambda: None))
    assert not finding.passed
    assert "draw" in finding.detail


def test_false_alarms_are_rare_enough_for_a_nightly_run():
    assert FALSE_ALARM <= 1e-6


# ---- seeds ----


def test_the_same_seed_must_give_the_same_tokens():
    state = torch.Generator().manual_seed(3)
    finding = probe(launch_that(lambda probs, generator: correct(probs, state)))
    assert (finding.passed, finding.detail) == (False, "the same seed gives other tokens")


def test_other_seeds_must_give_other_tokens():
    """Evenly spread, so that the frequencies of one call, repeated, do not fail first."""
    drawn = torch.arange(100)
    finding = depends_on_seed("samples", [drawn, drawn, drawn], 0.01)
    assert (finding.passed, finding.detail) == (False, "3 seeds give the same tokens")


def test_where_a_correct_sampler_would_repeat_itself_the_seed_is_not_judged():
    """One token holds all but a millionth of the probability."""
    truth = torch.tensor([[1 - 1e-6, 1e-6]], dtype=torch.float64).expand(BATCH, -1)
    finding = probe(launch_that(drawn(lambda probs: probs), truth), truth)
    assert finding.passed
    assert "dependence on the seed not judged: " in finding.coverage
    assert "draws are all the same with a probability of " in finding.coverage


def test_a_tenth_of_a_share_and_six_draws_are_enough_to_judge():
    tokens = torch.zeros(1, dtype=torch.int64)
    assert depends_on_seed("samples", [tokens] * 6, 0.1).passed
    assert not depends_on_seed("samples", [tokens] * 8, 0.1).passed


def test_chains_are_judged_by_their_own_likeliest_outcome_and_called_chains():
    chains = torch.zeros(3, 2, dtype=torch.int64)
    unjudged = depends_on_seed("tokens", [chains, chains], 0.5, "chains")
    assert unjudged.passed
    assert unjudged.detail.endswith("3 chains are all the same with a probability of 0.12")
    assert not depends_on_seed("tokens", [chains, chains], 0.001, "chains").passed


def test_the_likeliest_token_has_all_that_the_uncertain_ones_leave_it():
    """Of four even tokens two are uncertain: with neither in, a certain one has half."""
    row = everything(torch.full((1, 4), 0.25, dtype=torch.float64))
    assert likeliest(row) == 0.25
    certain = torch.tensor([[True, True, False, False]])
    assert likeliest(dataclasses.replace(row, certain=certain)) == 0.5
    assert likeliest(dataclasses.replace(row, certain=torch.zeros_like(certain))) == 1.0


# ---- thresholds ----


def uncertain(unsure: tuple[int, ...]) -> Support:
    """Eight even tokens for every row, those of which nobody can say whether they are in."""
    weights = torch.full((BATCH, 8), 0.125, dtype=torch.float64)
    certain = torch.ones(BATCH, 8, dtype=torch.bool)
    certain[:, list(unsure)] = False
    return Support(weights, certain, torch.ones_like(certain))


@pytest.mark.parametrize("kept", [(), (6,), (7,), (6, 7)])
def test_uncertain_tokens_may_be_in_or_out(kept: tuple[int, ...]):
    def some(probs: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(1, 8, dtype=torch.float64)
        weights[0, [0, 1, 2, 3, 4, 5, *kept]] = 1.0
        return weights

    truth = uncertain((6, 7))
    assert probe(launch_that(drawn(some), truth.weights), truth).passed


def test_uncertain_tokens_may_not_come_more_often_than_they_could():
    def mostly(probs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0] * 6 + [3.0, 3.0]], dtype=torch.float64)

    truth = uncertain((6, 7))
    finding = probe(launch_that(drawn(mostly), truth.weights), truth)
    assert not finding.passed
    assert "at a threshold, where at most a share of 0.25 can be" in finding.detail


# ---- rows ----


def test_a_sampler_that_takes_another_row_is_found_out_though_all_tokens_are_possible():
    truth = everything(PROBS)
    launch = launch_that(drawn(lambda probs: probs))
    launch = dataclasses.replace(launch, fn=lambda seed: by_rows(PROBS.roll(1, dims=0), seed))
    finding = probe(launch, truth)
    assert not finding.passed
    assert finding.detail.startswith("draws do not fit their own rows")


def test_rows_are_right_in_a_hundred_runs():
    truth = everything(PROBS)
    for run in range(100):
        tokens = torch.stack([by_rows(PROBS, 100 * run + seed) for seed in range(4)])
        error, variance = off_their_rows(tokens, truth)
        assert abs(error) < 5 * variance**0.5


def test_the_variance_of_rows_is_what_is_seen():
    truth = everything(PROBS)
    found = [off_their_rows(by_rows(PROBS, seed)[None], truth) for seed in range(400)]
    errors = torch.tensor([error for error, _ in found])
    assert float(errors.var()) == pytest.approx(found[0][1], rel=0.3)


def test_rows_of_which_nothing_is_certain_are_left_out():
    nothing = torch.zeros(BATCH, VOCABULARY, dtype=torch.bool)
    truth = Support(PROBS, nothing, ~nothing)
    assert off_their_rows(by_rows(PROBS, 0)[None], truth) == (0.0, 0.0)


# ---- how much ----


@pytest.mark.parametrize(
    ("rows", "vocabulary", "device", "calls"),
    [
        (1, 40, "cpu", MOST_CALLS),
        (1024, 40, "cpu", 64),
        (100_000, 40, "cpu", 2),
        (16, 32_000, "cpu", 16),
        (256, 128_256, "cpu", 2),
        (256, 128_256, "cuda", 65),
        (32, 128_256, "cuda", 523),
        (1, 128_256, "cuda", MOST_CALLS),
    ],
)
def test_as_many_calls_as_the_draws_need_and_time_allows(rows: int, vocabulary: int, device: str, calls: int):
    assert calls_for(rows, vocabulary, device) == calls


def test_no_call_is_made_without_need():
    seeds = []

    def draw(seed: int, offset: int) -> torch.Tensor:
        seeds.append(seed)
        return correct(PROBS, torch.Generator().manual_seed(seed))

    assert probe(dataclasses.replace(launch_that(correct), draw=draw)).passed
    assert seeds == [*range(calls_for(BATCH, VOCABULARY, "cpu")), 0]


# ---- what is said ----


def test_a_passed_probe_says_what_was_tried():
    finding = probe(launch_that(correct))
    assert re.fullmatch(
        r"chi-square of 41472 draws in 40 bins: p = 0\.\d+, false alarms 1e-06; the same seed gives the same tokens; "
        r"other seeds give other tokens; 4096 draws fit their own rows",
        finding.coverage,
    ), finding.coverage
