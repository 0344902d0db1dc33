"""One of several ranks, in one process: what the others say is put in place, what this one says is kept."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.run.ranks import SingleRank


class Rank(SingleRank):
    """Every rank says what this one does, unless ``everybody`` says otherwise."""

    def __init__(self, rank: int, size: int, everybody: tuple[Any, ...] = ()) -> None:
        self.rank, self.size = rank, size
        self.everybody, self.said = list(everybody), None

    def all_gather(self, value: Any) -> list[Any]:
        self.said = value
        return self.everybody or [value] * self.size
