"""The k largest of each row, in any order and with any choice among equal ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

PADDING = -1
"""What fills up a row that has fewer than k entries."""
FOREIGN = -2
"""What a position is called that belongs to no entry of its row."""


@dataclass(frozen=True)
class Selection:
    """The truth of a selection.

    Attributes:
        scores: (rows, n) fp64.
        lengths: (rows,) int64, how many entries of each row there are to choose from.
        k: how many are wanted.
        position_of: (rows, k) outputs to positions in their rows, PADDING or FOREIGN.
    """

    scores: torch.Tensor
    lengths: torch.Tensor
    k: int
    position_of: Callable[[torch.Tensor], torch.Tensor]

    def best(self) -> torch.Tensor:
        """(rows, min(k, n)) fp64: the largest scores, in descending order; -inf where a row has no more."""
        beyond = torch.arange(self.scores.shape[-1], device=self.scores.device) >= self.lengths[:, None]
        inside = self.scores.masked_fill(beyond, float("-inf"))
        return inside.topk(min(self.k, inside.shape[-1]), dim=-1).values


def as_they_are(output: torch.Tensor) -> torch.Tensor:
    """Outputs that are positions."""
    return output


@dataclass(frozen=True)
class LargestValues:
    """Passes when each row holds, in any order, the largest scores bit for bit. The truth is a ``Selection``."""

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, truth = actual[name], expected[name].best()
        if finding := wrong_shape(name, output, truth):
            return finding
        found = output.double().sort(dim=-1, descending=True).values
        differing = int((~(found == truth)).sum())
        return Finding(name, not differing, "the largest values of each row", truth.numel(), differing)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


@dataclass(frozen=True)
class LargestPositions:
    """Passes when each row names different entries of its own, which have the largest scores, and pads the rest.

    Attributes:
        values: the output that has to hold the scores at these positions, where there is one.
    """

    values: str = ""

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth: Selection = expected[name]
        output, best = actual[name], truth.best()
        rows, wanted = len(truth.scores), truth.k
        if output.shape != (rows, wanted):
            return Finding(name, False, f"shape {tuple(output.shape)} instead of {(rows, wanted)}", rows, rows)
        positions = truth.position_of(output.to(torch.int64))
        if finding := self._not_of_the_row(name, positions, truth) or _repeated(name, positions):
            return finding
        scores = _scores_at(positions, truth)
        differing = int((scores.sort(dim=-1, descending=True).values[:, : best.shape[1]] != best).sum())
        if differing:
            return Finding(name, False, "others than the largest are selected", best.numel(), differing)
        return self._beside_values(name, actual, scores)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _not_of_the_row(self, name: str, positions: torch.Tensor, truth: Selection) -> Finding | None:
        """Positions beyond the row's length, and padding where there is an entry to select, or none where not."""
        inside = (positions >= 0) & (positions < truth.lengths[:, None])
        due = truth.lengths.clamp(max=truth.k)
        wrong = int((~inside & (positions != PADDING)).sum()) or int((inside.sum(dim=-1) != due).sum())
        if not wrong:
            return None
        return Finding(name, False, "entries that are not of their row, or too few", positions.numel(), wrong)

    def _beside_values(self, name: str, actual: Outputs, scores: torch.Tensor) -> Finding:
        elements = scores.numel()
        if self.values:
            values = actual[self.values].double()
            differing = int((values != scores).sum()) if values.shape == scores.shape else elements
            if differing:
                return Finding(name, False, f"they do not belong to {self.values}", elements, differing)
        return Finding(name, True, "the largest of each row, in any order", elements, 0)


def _repeated(name: str, positions: torch.Tensor) -> Finding | None:
    ordered = positions.sort(dim=-1).values
    repeated = int(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).sum())
    return Finding(name, False, "entries are selected twice", positions.numel(), repeated) if repeated else None


def _scores_at(positions: torch.Tensor, truth: Selection) -> torch.Tensor:
    """(rows, k) fp64; -inf for padding."""
    found = truth.scores.gather(-1, positions.clamp(min=0))
    return torch.where(positions >= 0, found, float("-inf"))
