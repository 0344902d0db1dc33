"""Rows of which some entries are kept and the others replaced by one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.close import Close, compare
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.checks.support import Support
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class Kept:
    """Passes when what is kept contains all that is certain and nothing that is impossible, is enough, and has the
    right values. The truth is a ``Support``.

    Attributes:
        within: what is demanded of the kept values.
        dropped: what stands for the others: 0 or -inf.
        normalised: kept values are the weights divided by the sum of those kept, whichever these are; else the weights.
        at_least: how many must be kept of each row, ties or not; zero weights count as kept.
    """

    within: Close
    dropped: float
    normalised: bool
    at_least: int = 0

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, support = actual[name], expected[name]
        if finding := wrong_shape(name, output, support.weights):
            return finding
        kept = output != self.dropped  # true for NaN, whose value is then wrong
        if finding := self._wrong_choice(name, kept, support):
            return finding
        return compare(name, output, self._values(kept, support), self.within)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Of equal entries either may be kept."""
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _wrong_choice(self, name: str, kept: torch.Tensor, support: Support) -> Finding | None:
        vanishes = self._vanishes(support)
        missing, superfluous = support.certain & ~kept & ~vanishes, kept & ~support.possible
        few = (kept | vanishes).sum(dim=-1) < self.at_least
        wrong = int((missing | superfluous).sum()) or int(few.sum())
        if not wrong:
            return None
        what = f"{int(missing.sum())} missing, {int(superfluous.sum())} superfluous, {int(few.sum())} rows with too few"
        return Finding(name, False, f"other entries are kept: {what}", kept.numel(), wrong)

    def _vanishes(self, support: Support) -> torch.Tensor:
        """Kept or not, it looks the same: a probability that the output's format rounds to zero."""
        if self.dropped != 0:
            return torch.zeros_like(support.possible)
        return support.weights <= self.within.atol * support.weights.sum(dim=-1, keepdim=True)

    def _values(self, kept: torch.Tensor, support: Support) -> torch.Tensor:
        weights = torch.where(kept, support.weights, self.dropped)
        if not self.normalised:
            return weights
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
