"""What may be drawn from, or kept of, rows of numbers: the truth of samplers and of filters."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.lazy import torch


@dataclass(frozen=True)
class Support:
    """Which entries of each row are in, which are out, and of which nobody can say.

    An entry is in neither set when it is so close to a threshold that rounding decides, or when it is one of several
    equal ones of which only some are among the k largest.

    Attributes:
        weights: (rows, n) fp64: unnormalised probabilities, or whatever is filtered.
        certain: (rows, n) bool, those that are in.
        possible: (rows, n) bool, those that are not out; contains ``certain``.
    """

    weights: torch.Tensor
    certain: torch.Tensor
    possible: torch.Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def row(self, index: int) -> Support:
        """One row, as a support of one row."""
        part = slice(index, index + 1)
        return Support(self.weights[part], self.certain[part], self.possible[part])

    def laws(self) -> torch.Tensor:
        """(rows, n) fp64: the distribution of each row's draws, given that the entry is certain; zero for others."""
        kept = torch.where(self.certain, self.weights, torch.zeros_like(self.weights))
        return kept / kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)

    def unsure_share(self) -> torch.Tensor:
        """(rows,) fp64: how much of a row's draws uncertain entries can take, at most: if all of them are in."""
        allowed = torch.where(self.possible, self.weights, torch.zeros_like(self.weights)).sum(dim=-1)
        certain = torch.where(self.certain, self.weights, torch.zeros_like(self.weights)).sum(dim=-1)
        return 1 - certain / allowed.clamp(min=torch.finfo(torch.float64).tiny)

    def allows(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows,) bool: which of one token to a row are in range and not out."""
        inside = (tokens >= 0) & (tokens < self.weights.shape[-1])
        own = self.possible.gather(-1, tokens.clamp(0, self.weights.shape[-1] - 1)[:, None])[:, 0]
        return inside & own


def everything(weights: torch.Tensor) -> Support:
    """Every entry with a weight above zero."""
    weights = weights.double()
    return Support(weights, weights > 0, weights > 0)
