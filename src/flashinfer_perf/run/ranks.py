"""The processes that work on one case together. One process alone is a group of size 1, whose operations do nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.requirement import is_installed
from flashinfer_perf.run.failure import FailedElsewhere, classify

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")
"""How a launcher tells a process how many there are: MPICH and Intel MPI, Open MPI, PMIx, MVAPICH."""

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets; only all of them together mean that a group is to be formed by it."""

HEARD_SECONDS = 0.5
"""Between a rank's last words and the end of all: mpirun drops what it has not read by then."""
PATIENCE_SECONDS = 3.0
"""How long a rank that failed among collectives waits for the others before it ends them: they may sit in one that
cannot finish without it.
"""
PREPARATION_PATIENCE_SECONDS = 60.0
"""The same while a backend is prepared: the others may still compile kernels, and then refuse it, too."""


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that speaks; known before any group is formed."""
    names = (*RANK_VARIABLES, *(["RANK"] if is_torchrun(environment) else []))
    return all(environment.get(name, "0") == "0" for name in names)


def is_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process, or something that speaks its language."""
    return all(name in environment for name in TORCHRUN_VARIABLES)


def number_started(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher says it started; 1 without a launcher."""
    names = (*SIZE_VARIABLES, *(["WORLD_SIZE"] if is_torchrun(environment) else []))
    return max((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), default=1)


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

    def abort(self, error: BaseException) -> None:
        """Ends every rank, because this one cannot go on and the others would wait for it; says why."""
        ...


class SingleRank:
    """One process."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        return None

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def abort(self, error: BaseException) -> None:
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

    def abort(self, error: BaseException) -> None:
        say_why(self.rank, error)
        time.sleep(HEARD_SECONDS)
        self._world.Abort(1)


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The group that this process belongs to.

    Raises:
        InvalidInput: when an MPI launcher started several processes and mpi4py is missing.
    """
    started = number_started(environment)
    if started == 1:
        return SingleRank()
    if is_torchrun(environment) and not any(name in environment for name in SIZE_VARIABLES):
        from flashinfer_perf.run.torch_ranks import TorchRanks

        return TorchRanks()
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


def in_step(ranks: Ranks, step: Any, patience: float | None = None) -> Any:
    """Runs a step on every rank and raises on all of them if any fails, so that none waits for one that gave up.

    The step may exchange values itself. A rank that fails meets the others in the exchange that they have come to.

    Args:
        patience: seconds that a rank that failed waits for the others, for a step with collectives that are not those
            of ``ranks``: who sits in one does not come to an exchange. Then all ranks are ended with its error.

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
        with _patient(ranks, error, patience):
            ranks.all_gather(GaveUp(*classify(error)))
        raise
    ranks.all_gather(None)
    return result


@contextlib.contextmanager
def _patient(ranks: Ranks, error: BaseException, seconds: float | None) -> Iterator[None]:
    """Ends all ranks if what is inside takes longer."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, ranks.abort, (error,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say_why(rank: int, error: BaseException) -> None:
    """The last words of a rank that ends all."""
    lines = "".join(traceback.format_exception(error))
    print(f"{lines}[ERROR] rank {rank} failed and ends all ranks: {classify(error)[1]}", file=sys.stderr, flush=True)


def agree(ranks: Ranks, what: str, mine: Any) -> None:
    """Raises InvalidInput on every rank when they do not all hold the same value."""
    values = ranks.all_gather(mine)
    other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
    if other is not None:
        raise InvalidInput(
            f"rank {other} has other {what} than rank 0: {values[other]} is not {values[0]}; start all ranks alike"
        )


def place_on_host(ranks: Ranks) -> tuple[int, int]:
    """This rank's number among those on its host, and how many they are."""
    hosts = ranks.all_gather(socket.gethostname())
    mine = hosts[ranks.rank]
    return hosts[: ranks.rank].count(mine), hosts.count(mine)
