"""The processes that work on one case together. One process alone is a group of size 1, whose operations do nothing."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.requirement import is_installed
from flashinfer_perf.run.failure import FailedElsewhere, classify

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")
"""How a launcher tells a process how many there are: MPICH and Intel MPI, Open MPI, PMIx, MVAPICH."""


RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that speaks; known before any group is formed."""
    return all(environment.get(name, "0") == "0" for name in RANK_VARIABLES)


class Ranks(Protocol):
    """A group of processes that run the same cases in step.

    Both operations raise FailedElsewhere when another rank, instead of coming here, gave up the step (``in_step``).
    """

    rank: int
    size: int

    def barrier(self) -> None:
        """Returns when every rank is here."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        ...

    def abort(self) -> None:
        """Ends every rank, because this one cannot go on and the others would wait for it."""
        ...


class SingleRank:
    """One process."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        return None

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def abort(self) -> None:
        return None


class MpiRanks:
    """The processes that ``mpirun`` started."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._world = MPI.COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()

    def barrier(self) -> None:
        self.all_gather(None)
        self._world.Barrier()  # lets go of all at once, which an exchange of values does not

    def all_gather(self, value: Any) -> list[Any]:
        return unless_given_up(list(self._world.allgather(value)), self.rank)

    def abort(self) -> None:
        traceback.print_exc()
        self._world.Abort(1)


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


@dataclass(frozen=True)
class GaveUp:
    """What a rank says in place of a value when its step failed."""

    status: Status
    reason: str


def unless_given_up(values: list[Any], own_rank: int) -> list[Any]:
    """What the ranks said, if none gave up. Every implementation of ``all_gather`` passes its result through here.

    Raises:
        FailedElsewhere: about the first rank that gave up, unless that is this one, which has its own exception.
    """
    for rank, value in enumerate(values):
        if isinstance(value, GaveUp):
            if rank != own_rank:
                raise FailedElsewhere(rank, value.status, value.reason)
            break
    return values


def in_step(ranks: Ranks, step: Any) -> Any:
    """Runs a step on every rank and raises on all of them if any fails, so that none waits for one that gave up.

    The step may exchange values itself. A rank that fails meets the others in the exchange that they have come to.

    Returns:
        What the step returned on this rank.
    """
    if ranks.size == 1:
        return step()
    try:
        result = step()
    except FailedElsewhere:  # every rank knows, and has left the step
        raise
    except Exception as error:
        ranks.all_gather(GaveUp(*classify(error)))
        raise
    ranks.all_gather(None)
    return result


def slowest(ranks: Ranks, times: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Sample by sample and phase by phase, the longest time over the ranks: a collective is done when the last is."""
    if ranks.size == 1:
        return times
    gathered = ranks.all_gather(times)
    return [tuple(max(phase) for phase in zip(*sample, strict=True)) for sample in zip(*gathered, strict=True)]
