from __future__ import annotations

import sys
import threading
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
    agree,
    find_ranks,
    in_step,
    is_first_process,
    number_started,
    place_on_host,
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
    assert ranks.abort(ValueError()) is None
    assert in_step(ranks, lambda: 3) == 3
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


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "4711"}


def test_torchrun_is_known_by_all_of_its_variables():
    assert number_started(TORCHRUN) == 3
    assert not is_first_process(TORCHRUN)
    assert is_first_process(TORCHRUN | {"RANK": "0"})
    for missing in TORCHRUN:
        environment = {name: value for name, value in TORCHRUN.items() if name != missing}
        assert number_started(environment) == 1
        assert is_first_process(environment)


def test_an_mpi_launcher_comes_before_variables_that_torchrun_sets_too(monkeypatch: pytest.MonkeyPatch):
    """Scripts export them under mpirun, for torch.distributed."""
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    with pytest.raises(InvalidInput, match="mpi4py"):
        find_ranks(TORCHRUN | {"PMI_SIZE": "3"})


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


def test_a_rank_that_fails_ends_the_others_when_they_do_not_come():
    """They may sit in a collective of a backend's; here they never come."""
    ended = threading.Event()
    seen: list[BaseException] = []

    class Alone(SingleRank):
        rank, size = 1, 2

        def all_gather(self, value: object) -> list[object]:
            assert ended.wait(10)
            return [value]

        def abort(self, error: BaseException) -> None:
            seen.append(error)
            ended.set()

    with pytest.raises(ValueError, match="broken"):
        in_step(Alone(), lambda: int("broken"), patience=0.01)
    assert "broken" in str(seen[0])


def test_ranks_that_come_in_time_are_not_ended():
    def work(ranks: Ranks) -> tuple[str, object]:
        def step() -> None:
            if ranks.rank == 1:
                raise ValueError("broken")

        try:
            return "returned", in_step(ranks, step, patience=20)
        except Exception as error:
            return classify(error)

    assert on_two_ranks(work)[0] == (Status.FAILED, "rank 1: ValueError: broken")


# ---- what ranks have in common ----


def test_ranks_that_were_started_alike_agree():
    assert on_two_ranks(lambda ranks: agree(ranks, "flags", "-a")) == [None, None]


def test_ranks_that_were_started_differently_all_hear_of_it():
    def work(ranks: Ranks) -> str:
        with pytest.raises(InvalidInput) as caught:
            agree(ranks, "flags", f"--top_k {ranks.rank}")
        return str(caught.value)

    text = "rank 1 has other flags than rank 0: --top_k 1 is not --top_k 0; start all ranks alike"
    assert on_two_ranks(work) == [text, text]


class Somewhere(SingleRank):
    """Rank 2 of five on two hosts."""

    rank, size = 2, 5

    def all_gather(self, value: object) -> list[object]:
        return ["a", "b", "a", "a", "b"]


def test_a_rank_knows_its_place_on_its_host():
    assert place_on_host(Somewhere()) == (1, 3)
    assert place_on_host(SingleRank()) == (0, 1)


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


def test_abort_ends_all_ranks_and_says_why(
    world: FakeWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: world.calls.append("waits to be heard"))
    MpiRanks().abort(ValueError("the reason"))
    assert world.calls == ["waits to be heard", "abort 1"]
    assert "[ERROR] rank 0 failed and ends all ranks: ValueError: the reason" in capsys.readouterr().err
