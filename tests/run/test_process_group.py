from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Iterator

import pytest
import torch
from torch import distributed

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.run import process_group
from flashinfer_perf.run.process_group import TIMEOUT, join_process_group, nccl_group, start_line
from flashinfer_perf.run.ranks import SingleRank


@pytest.fixture
def no_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No process group before, none after, and what would have been done at the end of the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    yield at_exit
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_one_process_makes_a_group_that_works_and_is_left_at_the_end(no_group: list[object]):
    join_process_group(SingleRank())
    assert distributed.get_backend() == "gloo"
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    tensor = torch.ones(3)
    distributed.all_reduce(tensor)
    assert tensor.tolist() == [1, 1, 1]
    assert len(no_group) == 1
    no_group[0]()  # type: ignore[operator]
    assert not distributed.is_initialized()
    no_group[0]()  # type: ignore[operator]  # nothing is left to leave


def test_joining_twice_is_joining_once(no_group: list[object]):
    join_process_group(SingleRank())
    group = distributed.group.WORLD
    join_process_group(SingleRank())
    assert distributed.group.WORLD is group
    assert len(no_group) == 1


class Second:
    """Rank 1 of two; the first one has said where its store is."""

    rank, size = 1, 2

    def __init__(self, hosts: list[str]) -> None:
        self._answers = [hosts, [("the-first-host", 4711), ("", 0)]]

    def all_gather(self, value: object) -> list[object]:
        return list(self._answers.pop(0))


def test_other_ranks_go_to_the_store_of_the_first(no_group: list[object], monkeypatch: pytest.MonkeyPatch):
    seen = {}
    monkeypatch.setattr(distributed, "TCPStore", lambda *args, **kwargs: seen.update(store=args, options=kwargs))
    monkeypatch.setattr(distributed, "init_process_group", lambda *args, **kwargs: seen.update(group=kwargs))
    join_process_group(Second([socket.gethostname(), "another"]))  # type: ignore[arg-type]
    assert seen["store"] == ("the-first-host", 4711, 2)
    assert seen["options"] == {"is_master": False, "timeout": TIMEOUT}
    assert (seen["group"]["rank"], seen["group"]["world_size"]) == (1, 2)


@pytest.fixture
def group(no_group: list[object], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """In place of an NCCL group; gives how groups were asked for."""
    asked: list[dict[str, object]] = []
    for name in ("NCCL_NVLS_ENABLE", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(distributed, "new_group", lambda **how: asked.append(how) or "the group")
    process_group._nccl_group.cache_clear()
    yield asked
    process_group._nccl_group.cache_clear()


def test_an_nccl_group_is_made_once_and_without_multicast(group: list[dict[str, object]]):
    assert nccl_group(SingleRank()) == nccl_group(SingleRank()) == "the group"
    assert group == [{"backend": "nccl", "timeout": TIMEOUT}]
    assert os.environ["NCCL_NVLS_ENABLE"] == "0"


def test_collectives_have_as_many_channels_as_sends_unless_the_environment_says_otherwise(
    group: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
):
    nccl_group(SingleRank())
    assert (os.environ["NCCL_MIN_CTAS"], os.environ["NCCL_MAX_CTAS"]) == ("1", "1")
    monkeypatch.delenv("NCCL_MIN_CTAS")
    monkeypatch.delenv("NCCL_MAX_CTAS")
    process_group._nccl_group.cache_clear()
    nccl_group(SingleRank())
    assert os.environ["NCCL_MIN_CTAS"] == os.environ["NCCL_MAX_CTAS"] == process_group.NCCL_CHANNELS


def test_ranks_line_up_by_a_reduction_of_one_element(group: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch):
    reduced: list[tuple[int, object]] = []
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor, group: reduced.append((tensor.numel(), group)))
    monkeypatch.setattr(process_group.torch, "zeros", lambda count, device: torch.ones(count))

    class Two(SingleRank):
        size = 2

    monkeypatch.setattr(process_group, "join_process_group", lambda ranks: None)
    line_up = start_line(Two(), Machine("cuda:0", "fake", (9, 0)))
    assert line_up is not None
    line_up()
    assert reduced == [(1, "the group")]
    assert start_line(SingleRank(), Machine("cuda:0", "fake", (9, 0))) is None
    assert start_line(Two(), Machine("cpu", "cpu")) is None
