"""The processes that work on one case together. One process alone is a group of size 1, whose operations do nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.requirement import is_installed

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")
"""How a launcher tells a process how many there are: MPICH and Intel MPI, Open MPI, PMIx, MVAPICH."""


class Ranks(Protocol):
    """A group of processes that run the same cases in step."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Returns when every rank is here."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        ...


class SingleRank:
    """One process."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        return None

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


class MpiRanks:
    """The processes that ``mpirun`` started."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._world = MPI.COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()

    def barrier(self) -> None:
        self._world.Barrier()

    def all_gather(self, value: Any) -> list[Any]:
        return list(self._world.allgather(value))


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The group that this process belongs to.

    Raises:
        InvalidInput: when a launcher started several processes and mpi4py is missing.
    """
    started = max(
        (int(environment[name]) for name in SIZE_VARIABLES if environment.get(name, "").isdecimal()), default=1
    )
    if started == 1:
        return SingleRank()
    if not is_installed("mpi4py"):
        raise InvalidInput(
            f"{started} processes were started, but mpi4py is not installed; "
            "install it with: pip install 'flashinfer-perf[mpi]'"
        )
    return MpiRanks()


class FailedElsewhere(Exception):
    """Another rank failed in a step that all have to finish."""


def in_step(ranks: Ranks, step: Any) -> Any:
    """Runs a step on every rank and raises on all of them if any fails, so that none waits for one that gave up.

    Returns:
        What the step returned on this rank.
    """
    if ranks.size == 1:
        return step()
    result, error = None, None
    try:
        result = step()
    except Exception as caught:  # re-raised below, once every rank knows
        error = caught
    texts = ranks.all_gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text is not None:
            raise FailedElsewhere(f"rank {rank}: {text}")
    return result


def slowest(ranks: Ranks, times: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Sample by sample and phase by phase, the longest time over the ranks: a collective is done when the last is."""
    if ranks.size == 1:
        return times
    gathered = ranks.all_gather(times)
    return [tuple(max(phase) for phase in zip(*sample, strict=True)) for sample in zip(*gathered, strict=True)]
