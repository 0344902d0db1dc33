from __future__ import annotations

import sys
import types

import pytest

from flashinfer_perf.core.errors import InvalidInput, Unsupported
from flashinfer_perf.core.record import Status
from flashinfer_perf.run import ranks as module
from flashinfer_perf.run.failure import classify
from flashinfer_perf.run.ranks import (
    FailedElsewhere,
    GaveUp,
    MpiRanks,
    Ranks,
    SingleRank,
    find_ranks,
    in_step,
    is_first_process,
    slowest,
    unless_given_up,
)
from tests.fakes import on_two_ranks


def outcome(ranks: Ranks, step) -> tuple[str, object]:
    """How a step ended on this rank."""
    try:
        return "returned", in_step(ranks, step)
    except Exception as error:
        return classify(error)


# ---- one process ----


def test_one_process_is_a_group_that_waits_for_nobody():
    ranks = SingleRank()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.barrier() is None
    assert ranks.all_gather("x") == ["x"]
    assert ranks.abort() is None
    assert in_step(ranks, lambda: 3) == 3
    assert slowest(ranks, [(1.0, 2.0)]) == [(1.0, 2.0)]
    with pytest.raises(ValueError, match="as it is"):
        in_step(ranks, lambda: int("as it is"))


def test_without_a_launcher_there_is_one_process():
    assert isinstance(find_ranks({}), SingleRank)
    assert isinstance(find_ranks({"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "x"}), SingleRank)


@pytest.mark.parametrize("variable", module.SIZE_VARIABLES)
def test_several_processes_without_mpi4py_name_the_extra(variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    with pytest.raises(InvalidInput, match=r"4 processes.*flashinfer-perf\[mpi\]"):
        find_ranks({variable: "4"})


@pytest.mark.parametrize("variable", module.RANK_VARIABLES)
def test_the_first_process_is_known_before_there_is_a_group(variable: str):
    assert is_first_process({})
    assert is_first_process({variable: "0"})
    assert not is_first_process({variable: "2"})


# ---- steps that all finish or none ----


def test_each_rank_gets_its_own_result():
    assert on_two_ranks(lambda ranks: in_step(ranks, lambda: ranks.rank * 10)) == [0, 10]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_on_one_rank_ends_the_step_on_both(failing: int):
    def work(ranks: Ranks) -> tuple[str, object]:
        def step() -> None:
            if ranks.rank == failing:
                raise ValueError("broken")

        return outcome(ranks, step)

    results = on_two_ranks(work)
    assert results[failing] == (Status.FAILED, "ValueError: broken")
    assert results[1 - failing] == (Status.FAILED, f"rank {failing}: ValueError: broken")


@pytest.mark.parametrize("error", [Unsupported("no"), MemoryError("no"), InvalidInput("no")])
def test_ranks_give_a_failure_the_same_status(error: Exception):
    """Whether another backend is tried depends on it: ranks that disagree would wait for each other for ever."""

    def work(ranks: Ranks) -> tuple[str, object]:
        def step() -> None:
            if ranks.rank == 1:
                raise error

        return outcome(ranks, step)

    (first, _), (second, _) = on_two_ranks(work)
    assert first is second is classify(error)[0]


@pytest.mark.parametrize("exchanges_before", [0, 1, 3])
def test_a_rank_that_fails_meets_the_others_in_the_middle_of_the_step(exchanges_before: int):
    """The others are in a barrier then, or exchange values: they must not wait there for ever."""

    def work(ranks: Ranks) -> tuple[str, object]:
        def step() -> None:
            for number in range(4):
                if ranks.rank == 1 and number == exchanges_before:
                    raise ValueError("broken")
                ranks.barrier() if number % 2 else ranks.all_gather(number)

        return outcome(ranks, step)

    assert on_two_ranks(work) == [
        (Status.FAILED, "rank 1: ValueError: broken"),
        (Status.FAILED, "ValueError: broken"),
    ]


def test_when_both_fail_the_first_ones_failure_is_everybodys():
    def work(ranks: Ranks) -> tuple[str, object]:
        def step() -> None:
            raise Unsupported("not here") if ranks.rank == 0 else ValueError("broken")

        return outcome(ranks, step)

    assert on_two_ranks(work) == [(Status.UNSUPPORTED, "not here"), (Status.UNSUPPORTED, "rank 0: not here")]


def test_ranks_are_in_step_again_after_a_failure():
    def work(ranks: Ranks) -> object:
        def step() -> None:
            ranks.barrier()
            if ranks.rank == 0:
                raise ValueError("broken")
            ranks.barrier()

        outcome(ranks, step)
        return in_step(ranks, lambda: ranks.all_gather(ranks.rank))

    assert on_two_ranks(work) == [[0, 1], [0, 1]]


def test_a_value_that_says_that_a_rank_gave_up_is_for_the_others():
    gave_up = GaveUp(Status.FAILED, "why")
    assert unless_given_up([1, 2], 0) == [1, 2]
    assert unless_given_up([1, gave_up], 1) == [1, gave_up]
    with pytest.raises(FailedElsewhere, match="rank 1: why"):
        unless_given_up([1, gave_up, gave_up], 0)
    with pytest.raises(FailedElsewhere, match="rank 1: why"):
        unless_given_up([1, gave_up, gave_up], 2)


# ---- times ----


def test_a_sample_is_that_of_the_slowest_rank_phase_by_phase():
    mine = [[(1.0, 5.0), (2.0, 2.0)], [(3.0, 4.0), (1.0, 9.0)]]
    assert on_two_ranks(lambda ranks: slowest(ranks, mine[ranks.rank])) == [[(3.0, 5.0), (2.0, 9.0)]] * 2


def test_ranks_with_different_numbers_of_samples_are_an_error():
    def work(ranks: Ranks) -> None:
        with pytest.raises(ValueError, match=r"shorter|longer"):
            slowest(ranks, [(1.0,)] * (ranks.rank + 1))

    on_two_ranks(work)


# ---- MPI ----


class FakeWorld:
    """A communicator of two, of which the other one says what it is told."""

    def __init__(self, other: object = None) -> None:
        self.other = other
        self.calls: list[str] = []

    def Get_rank(self) -> int:  # noqa: N802
        return 0

    def Get_size(self) -> int:  # noqa: N802
        return 2

    def Barrier(self) -> None:  # noqa: N802
        self.calls.append("barrier")

    def allgather(self, value: object) -> list[object]:
        self.calls.append("allgather")
        return [value, self.other]

    def Abort(self, status: int) -> None:  # noqa: N802
        self.calls.append(f"abort {status}")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    world = FakeWorld("b")
    package = types.ModuleType("mpi4py")
    package.MPI = types.SimpleNamespace(COMM_WORLD=world)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    return world


def test_mpi_ranks_speak_through_the_world_communicator(world: FakeWorld, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    ranks = find_ranks({"PMI_SIZE": "2"})
    assert isinstance(ranks, MpiRanks)
    assert (ranks.rank, ranks.size) == (0, 2)
    assert ranks.all_gather("a") == ["a", "b"]
    ranks.barrier()
    assert world.calls == ["allgather", "allgather", "barrier"]


def test_an_mpi_barrier_does_not_wait_for_a_rank_that_gave_up(world: FakeWorld):
    world.other = GaveUp(Status.FAILED, "why")
    with pytest.raises(FailedElsewhere, match="rank 1: why"):
        MpiRanks().barrier()
    assert "barrier" not in world.calls


def test_abort_ends_all_ranks_and_says_why(world: FakeWorld, capsys: pytest.CaptureFixture[str]):
    try:
        raise ValueError("the reason")
    except ValueError:
        MpiRanks().abort()
    assert world.calls == ["abort 1"]
    assert "the reason" in capsys.readouterr().err
