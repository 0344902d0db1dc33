"""Rotated vectors: how far an element may be off depends on its pair, and on how far the angle may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from flashinfer_perf.checks.close import Close
from flashinfer_perf.lazy import torch


@dataclass(frozen=True)
class RotatedHeads:
    """Where the pairs of a head are: its first ``rotary_dim`` dimensions, neighbours or the members of two halves."""

    head_dim: int
    rotary_dim: int
    interleave: bool

    def pairs(self, heads: torch.Tensor) -> torch.Tensor:
        """(…, head_dim) to (…, rotary_dim / 2, 2)."""
        rotary = heads[..., : self.rotary_dim]
        if self.interleave:
            return rotary.unflatten(-1, (-1, 2))
        return rotary.unflatten(-1, (2, -1)).transpose(-1, -2)

    def members(self, pairs: torch.Tensor) -> torch.Tensor:
        """The inverse: (…, rotary_dim / 2, 2) to (…, rotary_dim)."""
        return (pairs if self.interleave else pairs.transpose(-1, -2)).flatten(-2)


@dataclass(frozen=True)
class Rotated(Close):
    """As ``Close``, but an angle that is off by so much moves both members of a pair by at most that times the pair's
    length, which no rotation changes. Dimensions that are not rotated have to be equal, bit for bit.

    Attributes:
        heads: where the pairs are.
        positions: (tokens,) of the output's first dimension.
        angle_error: (pairs,) radians per position.
        least_angle_error: radians, at any position.
        largest_angle_error: radians, however far the position.
    """

    heads: RotatedHeads = field(kw_only=True)
    positions: torch.Tensor = field(kw_only=True, repr=False)
    angle_error: torch.Tensor = field(kw_only=True, repr=False)
    least_angle_error: float = field(kw_only=True)
    largest_angle_error: float = field(kw_only=True)

    def allowed(self, expected: torch.Tensor) -> torch.Tensor:
        rows = expected.reshape(len(self.positions), -1, self.heads.head_dim)
        bound = torch.zeros_like(rows)
        turned = self.heads.pairs(rows)
        off = turned.norm(dim=-1, keepdim=True) * self._angle_errors()[:, None, :, None]
        within = self.atol + self.rtol * turned.abs() + off
        bound[..., : self.heads.rotary_dim] = self.heads.members(within)
        return bound.reshape(expected.shape)

    def twice(self) -> Rotated:
        names = ("rtol", "atol", "angle_error", "least_angle_error", "largest_angle_error")
        doubled = {name: 2 * getattr(self, name) for name in names}
        return dataclasses.replace(self, **doubled)

    def _angle_errors(self) -> torch.Tensor:
        """(tokens, pairs), fp64."""
        off = self.least_angle_error + self.positions.double()[:, None] * self.angle_error
        return off.clamp(max=self.largest_angle_error)
