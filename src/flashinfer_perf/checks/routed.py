"""Mixtures of experts: which experts each token went to, and what came of it.

Where scores lie so close together that a kernel's arithmetic may order them either way, any of the sets is right, and
the output is judged by the set that the kernel has chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.close import Close, compare
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

SETS = "the experts with the largest scores, in any order"


@dataclass(frozen=True)
class Choice:
    """The truth of a selection.

    Attributes:
        experts: (tokens, top_k) int64, one right choice.
        scores: (tokens, experts) fp64.
        groups: (tokens, n_group) fp64, the scores of groups; one column where there are none.
        topk_group: how many groups a token may choose from.
        slack: scores that differ by no more are as good as equal.
    """

    experts: torch.Tensor
    scores: torch.Tensor
    groups: torch.Tensor
    topk_group: int
    slack: float

    def wrong(self, experts: torch.Tensor) -> torch.Tensor:
        """(tokens,) booleans: whose experts (tokens, top_k) are out of range, repeated or not the best."""
        count = self.scores.shape[1]
        outside = ((experts < 0) | (experts >= count)).any(dim=-1)
        known = experts.clamp(0, count - 1)
        chosen = torch.zeros_like(self.scores, dtype=torch.bool).scatter(1, known, True)
        repeated = chosen.sum(dim=-1) != experts.shape[1]
        allowed, too_many = self._groups(chosen)
        worst = self.scores.masked_fill(~chosen, float("inf")).amin(dim=-1)
        passed_over = self.scores.masked_fill(chosen | ~allowed, float("-inf")).amax(dim=-1)
        return outside | repeated | too_many | ~(passed_over <= worst + self.slack)

    def _groups(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which experts a token had to consider, and whether it chose from groups that are not the best."""
        count = self.groups.shape[1]
        used = chosen.unflatten(-1, (count, -1)).any(dim=-1)
        ordered = self.groups.sort(dim=-1, descending=True).values
        none = torch.full_like(ordered[:, :1], float("-inf"))
        first_out = torch.cat((ordered, none), dim=-1)[:, self.topk_group, None]
        certain = self.groups > first_out + self.slack
        impossible = self.groups < ordered[:, self.topk_group - 1, None] - self.slack
        considered = used | certain
        too_many = (considered.sum(dim=-1) > self.topk_group) | (used & impossible).any(dim=-1)
        return considered.repeat_interleave(chosen.shape[1] // count, dim=-1), too_many


@dataclass(frozen=True)
class ChosenExperts:
    """Passes when each token has gone to different experts than which none is better. The truth is a ``Choice``."""

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        choice: Choice = expected[name]
        if finding := wrong_shape(name, actual[name], choice.experts):
            return finding
        wrong = int(choice.wrong(actual[name].long()).sum())
        return Finding(name, not wrong, SETS, len(choice.experts), wrong)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Either of two ties is right."""
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


@dataclass(frozen=True)
class Mixed:
    """The truth of an output.

    Attributes:
        output: (tokens, hidden) fp32, with the experts of ``choice``.
        choice: which of the selection's choices it belongs to.
        of_others: (rows, their experts) -> what these tokens would give with other experts.
    """

    output: torch.Tensor
    choice: Choice
    of_others: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def with_experts(self, experts: torch.Tensor) -> torch.Tensor:
        """The truth for experts (tokens, top_k), where they are right; else for the first right choice."""
        rows = other_sets(experts, self.choice.experts) & ~self.choice.wrong(experts)
        if not rows.any():
            return self.output
        (places,) = rows.nonzero(as_tuple=True)
        return self.output.index_copy(0, places, self.of_others(places, experts[places]))


@dataclass(frozen=True)
class MixtureOutput:
    """Passes when the output is that of the experts that were chosen. The truth is a ``Mixed``.

    Attributes:
        within: how near.
        experts: the output that says which experts were chosen.
    """

    within: Close
    experts: str

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth: Mixed = expected[name]
        experts = actual[self.experts]
        fits = experts.shape == truth.choice.experts.shape
        output = truth.with_experts(experts.long()) if fits else truth.output
        return compare(name, actual[name], output, self.within)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Of the tokens that went to the same experts."""
        same = ~other_sets(actual[self.experts].long(), other[self.experts].long())
        return compare(name, actual[name][same], other[name][same], self.within.twice())

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


def other_sets(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(tokens,) booleans: whose experts are not the same, whatever their order."""
    return (one.sort(dim=-1).values != other.sort(dim=-1).values).any(dim=-1)
