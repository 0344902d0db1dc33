"""Chain speculative sampling: which draft tokens are accepted, and what follows the last of them.

Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding (arXiv:2211.17192), algorithm 1.
Draft token d_i is accepted with probability min(1, Q_i(d_i) / P_i(d_i)); after the first that is not comes a token
drawn from max(Q_i - P_i, 0), or after all of them one from Q_n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.distribution import (
    FALSE_ALARM,
    WANTED_OF_ROWS,
    all_of,
    calls_for,
    depends_on_seed,
    of_right_size,
    repeatable,
)
from flashinfer_perf.checks.draws import chi_square, farthest, strangest
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

PADDING = -1
"""What stands after the last token."""


@dataclass(frozen=True)
class Chains:
    """The truth of a batch of chains of n draft tokens.

    Attributes:
        ids: (batch, n) int64 draft tokens.
        accept: (batch, n) fp64, the probability with which each is accepted when its turn comes.
        possible: (batch, n + 1, vocab) bool, what may follow so many accepted tokens.
        extra: (n + 1, vocab) fp64 for the first chain: the distribution of what follows.
    """

    ids: torch.Tensor
    accept: torch.Tensor
    possible: torch.Tensor
    extra: torch.Tensor

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def emitted_laws(self) -> torch.Tensor:
        """(batch, n + 1) fp64: how probable it is that so many are accepted in a row."""
        one = self.accept.new_ones(len(self.accept), 1)
        before = torch.cat([one, self.accept.cumprod(dim=-1)], dim=-1)
        return before * torch.cat([1 - self.accept, one], dim=-1)

    def accepted_means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch,) expected counts of accepted tokens: each by itself; and with those from the first rejected one on
        drawn a second time, as FlashInfer does.
        """
        rest = self.accept.flip(-1).cumsum(-1).flip(-1)
        rest = torch.nn.functional.pad(rest, (0, 1))
        places = torch.arange(self.length + 1, device=self.accept.device)
        return self.accept.sum(dim=-1), (self.emitted_laws() * (places + rest)).sum(dim=-1)

    def likeliest(self) -> float:
        """Probability of the most probable outcome of the first chain."""
        return float((self.emitted_laws()[0][:, None] * self.extra).max())


@dataclass(frozen=True)
class ChainTokens:
    """Passes when every chain is accepted draft tokens, one token that may follow them and padding; and when further
    calls on the first chain, replicated, follow the laws of acceptance and of the token that comes then. ``draw`` gives
    tokens, accepted and emitted counts.
    """

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth: Chains = expected[name]
        output = actual[name].to(torch.int64)
        shape = (len(truth.ids), truth.length + 1)
        if output.shape != shape:
            return Finding(name, False, f"shape {tuple(output.shape)} instead of {shape}", shape[0], shape[0])
        wrong = int((~well_formed(output, truth)).sum())
        return Finding(name, not wrong, "chains that can come out", len(output), wrong)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        if launch.draw is None:
            return Finding(name, False, "the backend offers no draw(seed, offset), so its distribution is unchecked")
        truth: Chains = expected[name]
        rows = len(truth.ids)
        calls = calls_for(rows, (2 * truth.length + 1) * truth.extra.shape[1], truth.ids.device.type)
        drawn = [launch.draw(seed, 0) for seed in range(calls)]
        tokens = [ids.to(torch.int64) for ids, _, _ in drawn]
        together = torch.cat(tokens)
        first = _replicated(truth, len(together))
        return all_of(
            name,
            (
                lambda: of_right_size(name, tokens, rows),
                lambda: self.judge(name, {name: together}, {name: first}),
                lambda: _emitted(name, together, truth),
                lambda: _following(name, together, truth),
                lambda: _of_their_chains(name, launch, truth, calls),
                lambda: repeatable(name, tokens[0], launch.draw(0, 0)[0].to(torch.int64)),
                lambda: depends_on_seed(name, tokens, truth.likeliest(), "chains"),
            ),
        )


@dataclass(frozen=True)
class EmittedCount:
    """Passes when every number is that of the draft tokens at the start of the chain in the output ``tokens``."""

    tokens: str

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, counts = actual[name], emitted_of(actual[self.tokens].to(torch.int64))
        if output.shape != counts.shape:
            return Finding(name, False, f"shape {tuple(output.shape)} instead of {tuple(counts.shape)}")
        wrong = int((output != counts).sum())
        return Finding(name, not wrong, "draft tokens in the chain", len(output), wrong)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


@dataclass(frozen=True)
class AcceptedCount(EmittedCount):
    """Passes when every number is between that of the emitted draft tokens and that of all. Its mean is judged with
    the tokens.
    """

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, counts = actual[name], emitted_of(actual[self.tokens].to(torch.int64))
        if output.shape != counts.shape:
            return Finding(name, False, f"shape {tuple(output.shape)} instead of {tuple(counts.shape)}")
        wrong = int((~((output >= counts) & (output <= expected[name].length))).sum())
        return Finding(name, not wrong, "between the emitted and all draft tokens", len(output), wrong)


def emitted_of(tokens: torch.Tensor) -> torch.Tensor:
    """(batch,) number of draft tokens at the start of (batch, n + 1) chains: all but the last that is no padding."""
    return (tokens != PADDING).sum(dim=-1) - 1


def well_formed(tokens: torch.Tensor, truth: Chains) -> torch.Tensor:
    """(batch,) bool: which chains can come out."""
    length, vocabulary = truth.length, truth.possible.shape[-1]
    emitted = emitted_of(tokens)
    places = torch.arange(length + 1, device=tokens.device)
    before = places[:length] < emitted[:, None]
    right = (~before | ((tokens[:, :length] == truth.ids) & (truth.accept > 0))).all(dim=-1)
    padded = ((places <= emitted[:, None]) == (tokens != PADDING)).all(dim=-1)
    place = emitted.clamp(0, length)
    certain = torch.cat([truth.accept, truth.accept.new_zeros(len(truth.accept), 1)], dim=-1)
    stopped = certain.gather(-1, place[:, None])[:, 0] < 1
    extra = tokens.gather(-1, place[:, None])[:, 0]
    rows = torch.arange(len(tokens), device=tokens.device)
    follows = truth.possible[rows, place, extra.clamp(0, vocabulary - 1)] & (extra >= 0) & (extra < vocabulary)
    return (emitted >= 0) & right & padded & stopped & follows


def _replicated(truth: Chains, rows: int) -> Chains:
    """The first chain so many times, in no more memory."""
    return Chains(
        truth.ids[:1].expand(rows, -1),
        truth.accept[:1].expand(rows, -1),
        truth.possible[:1].expand(rows, -1, -1),
        truth.extra,
    )


def _alarm(truth: Chains) -> float:
    """Of each statistical test: two of what follows any number of accepted tokens, and two of the counts."""
    return FALSE_ALARM / (2 * (truth.length + 1) + 2)


def _emitted(name: str, tokens: torch.Tensor, truth: Chains) -> Finding:
    p_value, bins = chi_square(emitted_of(tokens), truth.emitted_laws()[0])
    detail = f"chi-square of {len(tokens)} chains' accepted tokens in {bins} bins: p = {p_value:.3g}"
    return Finding(name, p_value >= _alarm(truth), detail, len(tokens))


def _following(name: str, tokens: torch.Tensor, truth: Chains) -> Finding:
    """What comes after any number of accepted tokens; the worst of them."""
    emitted, worst = emitted_of(tokens), 1.0
    for place in range(truth.length + 1):
        extra = tokens[emitted == place, place]
        worst = min(worst, chi_square(extra, truth.extra[place])[0], strangest(extra, truth.extra[place]))
    detail = f"of the token that follows: p = {worst:.3g} at the least, false alarms {FALSE_ALARM:g}"
    return Finding(name, worst >= _alarm(truth), detail, len(tokens))


def _of_their_chains(name: str, launch: Launch, truth: Chains, calls: int) -> Finding:
    """The timed call itself, with other seeds: as many tokens are accepted as the chains' own probabilities say."""
    rows = len(truth.ids)
    calls = max(min(calls // 4, math.ceil(WANTED_OF_ROWS / rows)), 1)
    results = [launch.with_seed(seed) for seed in range(calls)]
    tokens = [ids.to(torch.int64) for ids, _, _ in results]
    if any(chains.shape != (rows, truth.length + 1) for chains in tokens):
        return Finding(name, False, f"{len(tokens[0])} chains out of {rows}")
    wrong = sum(int((~well_formed(chains, truth)).sum()) for chains in tokens)
    if wrong:
        return Finding(name, False, "chains that cannot come out", calls * rows, wrong)
    emitted = sum(float(emitted_of(chains).sum()) for chains in tokens)
    accepted = sum(float(counts.double().sum()) for _, counts, _ in results)
    return _counts_fit(name, calls, emitted, accepted, truth)


def _counts_fit(name: str, calls: int, emitted: float, accepted: float, truth: Chains) -> Finding:
    """The sums of both counts over so many calls, against their expectations."""
    places = torch.arange(truth.length + 1, device=truth.ids.device).double()
    mean, chains = truth.emitted_laws() @ places, calls * len(truth.ids)
    variance = float((truth.emitted_laws() @ places.square() - mean.square()).clamp(min=0).sum())
    low, high = (calls * float(means.sum()) for means in truth.accepted_means())
    for what, found, least, most, of_chains in (
        ("emitted", emitted, calls * float(mean.sum()), calls * float(mean.sum()), variance),
        ("accepted", accepted, low, high, len(truth.ids) * truth.length**2 / 4),  # no variance is larger
    ):
        margin = truth.length * farthest(calls * of_chains / truth.length**2, _alarm(truth))
        if not least - margin <= found <= most + margin:
            expected = f"{least:.6g} to {most:.6g}, give or take {margin:.3g}"
            return Finding(name, False, f"{found:.6g} tokens {what} in {chains} chains, not {expected}", chains, chains)
    return Finding(name, True, f"{chains} chains fit their own probabilities")
