"""Tokens that carry their identity: every byte of a row tells whose it is, so that it is known wherever it arrives.

Token t of rank r has the number r * tokens + t. Its weights are the bits of number * top_k + 1, + 2, …; its hidden
states and scales are bytes worked out from its number and the column.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.lazy import torch

MULTIPLIER = 2654435761
"""Knuth's, for multiplicative hashing (The Art of Computer Programming, volume 3, section 6.4)."""
COLUMN_STEP = 40503
SHIFT = 9
ROWS_AT_A_TIME = 1024
"""Their bytes are worked out in numbers of eight bytes each."""


@dataclass(frozen=True)
class Arrivals:
    """What is wrong with the rows that came to a rank, in rows.

    Attributes:
        expected: rows that ought to come.
        missing, twice, stray: did not come; came again; came though no expert of theirs is here.
        spoilt: came with other bytes than they were sent with, or with another's.
    """

    expected: int
    missing: int
    twice: int
    stray: int
    spoilt: int

    @property
    def wrong(self) -> int:
        return self.missing + self.twice + self.stray + self.spoilt

    @property
    def text(self) -> str:
        return (
            f"of {self.expected} rows {self.missing} are missing, {self.twice} came twice, {self.stray} do not belong "
            f"here, {self.spoilt} have other contents"
        )


def rows_of(
    numbers: torch.Tensor, expert_ids: torch.Tensor, like: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The rows of some tokens: expert ids, weights, and parts of the formats and widths of ``like``.

    Args:
        numbers: (tokens,) int64.
        expert_ids: (tokens, top_k) int32.
    """
    top_k = expert_ids.shape[1]
    weights = numbers[:, None] * top_k + torch.arange(1, top_k + 1, device=numbers.device)
    wide = (_bytes(numbers, part.shape[1] * part.element_size(), salt) for salt, part in enumerate(like))
    parts = (rows.view(part.dtype) for rows, part in zip(wide, like, strict=True))
    return expert_ids, weights.to(torch.int32).view(torch.float32), *parts


def examine(arrived: tuple[torch.Tensor, ...], all_ids: torch.Tensor, needed: torch.Tensor) -> Arrivals:
    """Compares rows that arrived with those that ought to.

    Args:
        arrived: the used slots only: ids, weights, and the other parts.
        all_ids: (all tokens, top_k) int32, those of every rank by their numbers.
        needed: (all tokens,) booleans: whether the token belongs here.
    """
    numbers = (arrived[1].contiguous().view(torch.int32)[:, 0].long() - 1).div(all_ids.shape[1], rounding_mode="floor")
    known = (numbers >= 0) & (numbers < len(all_ids))
    count = torch.bincount(numbers[known], minlength=len(all_ids))
    numbers = numbers.clamp(0, len(all_ids) - 1)
    same = known & _unharmed(arrived, numbers, all_ids)
    return Arrivals(
        expected=int(needed.sum()),
        missing=int((needed & (count == 0)).sum()),
        twice=int((count - 1).clamp(min=0).sum()),
        stray=int((~needed & (count > 0)).sum()),
        spoilt=int((~same).sum()),
    )


def _unharmed(arrived: tuple[torch.Tensor, ...], numbers: torch.Tensor, all_ids: torch.Tensor) -> torch.Tensor:
    """(rows,) booleans: whether a row is byte by byte that of the token whose number it has."""
    same = torch.ones_like(numbers, dtype=torch.bool)
    for start in range(0, len(numbers), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        meant = rows_of(numbers[part], all_ids[numbers[part]], arrived[2:])
        for found, expected in zip(arrived, meant, strict=True):
            same[part] &= (_as_bytes(found[part]) == _as_bytes(expected)).all(dim=1)
    return same


def _bytes(numbers: torch.Tensor, width: int, salt: int) -> torch.Tensor:
    """(tokens, width) uint8."""
    column = (torch.arange(width, device=numbers.device) + salt) * COLUMN_STEP
    out = torch.empty(len(numbers), width, dtype=torch.uint8, device=numbers.device)
    for part, some in zip(out.split(ROWS_AT_A_TIME), numbers.split(ROWS_AT_A_TIME), strict=True):
        part.copy_((((some[:, None] + 1) * MULTIPLIER + column) >> SHIFT) & 0xFF)
    return out


def _as_bytes(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.uint8)
