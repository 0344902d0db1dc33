"""One process of torchrun's; several: ``tests/routines/moe_comm/test_several_ranks.py``."""

from __future__ import annotations

import atexit
import os
import socket

import pytest
from torch import distributed

from flashinfer_perf.core.record import Status
from flashinfer_perf.run import torch_ranks
from flashinfer_perf.run.ranks import FailedElsewhere, GaveUp, find_ranks
from flashinfer_perf.run.torch_ranks import TorchRanks


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    """A group of one, as torchrun would have started it."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(atexit, "register", lambda leave: None)
    yield TorchRanks()
    distributed.destroy_process_group()


def test_ranks_speak_through_a_group_of_their_own(alone: TorchRanks):
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.all_gather({"a": 1}) == [{"a": 1}]
    alone.barrier()


def test_a_rank_that_gave_up_is_heard(alone: TorchRanks, monkeypatch: pytest.MonkeyPatch):
    def gather(values: list[object], value: object) -> None:
        values[:] = [value, GaveUp(Status.FAILED, "why")]

    alone.size = 2
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    with pytest.raises(FailedElsewhere, match="rank 1: why"):
        alone.barrier()


def test_aborting_says_why_and_ends_the_process(alone: TorchRanks, monkeypatch: pytest.MonkeyPatch, capsys):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    alone.abort(ValueError("the reason"))
    assert ended == [1]
    assert "rank 0 failed and ends all ranks: ValueError: the reason" in capsys.readouterr().err


def test_torchruns_variables_lead_to_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_ranks, "TorchRanks", lambda: "ranks of torchrun")
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    assert find_ranks(environment) == "ranks of torchrun"
