from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.run import placement
from flashinfer_perf.run.placement import machine_of
from flashinfer_perf.run.ranks import SingleRank


class Third(SingleRank):
    """The third of four ranks on one host."""

    rank, size = 2, 4

    def all_gather(self, value: object) -> list[object]:
        return [value] * 4


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A host with so many GPUs; gives the devices that were made current."""
    current: list[str] = []

    def pretend(count: int) -> list[str]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(placement, "find_machine", lambda device: Machine(device, "fake", (9, 0)))
        return current

    return pretend


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_rank_of_a_host_gets_a_gpu_of_its_own(device: str, gpus):
    current = gpus(8)
    assert machine_of(device, Third()).device == "cuda:2"
    assert current == ["cuda:2"]


def test_a_device_that_was_named_is_taken(gpus):
    current = gpus(8)
    assert machine_of("cuda:5", Third()).device == "cuda:5"
    assert machine_of("cuda:1", SingleRank()).device == "cuda:1"
    assert current == ["cuda:5", "cuda:1"]


def test_more_ranks_than_gpus_are_refused(gpus):
    gpus(3)
    with pytest.raises(InvalidInput, match=r"4 ranks were started .* see 3 GPU\(s\).*at most 3, or use --device cpu"):
        machine_of("auto", Third())


def test_ranks_without_a_gpu_run_on_the_cpu(gpus):
    current = gpus(0)
    assert machine_of("cpu", Third()).device == "cpu"
    assert machine_of("auto", Third()).device == "auto"
    assert current == []
