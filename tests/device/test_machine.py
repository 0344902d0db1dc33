from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.device import machine as module
from flashinfer_perf.device.machine import cpu_cache_bytes, find_machine, free_bytes

GIB = 1 << 30


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * GIB, 80 * GIB))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_the_machine_is_the_cpu(device: str):
    machine = find_machine(device)
    assert (machine.device, machine.name, machine.is_cuda) == ("cpu", "cpu", False)
    assert machine.compute_capability is None
    assert machine.last_level_cache_bytes == cpu_cache_bytes()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named_with_what_to_do(device: str):
    with pytest.raises(Unsupported, match=rf"--device {device}: torch .* sees no CUDA GPU here; use --device cpu"):
        find_machine(device)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "found"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_gpu_is_described(device: str, found: str):
    assert find_machine(device) == Machine(found, "NVIDIA H200", (9, 0), 50 << 20)


@pytest.mark.usefixtures("two_gpus")
def test_the_cpu_may_be_asked_for_beside_a_gpu():
    assert find_machine("cpu").device == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last_is_named_with_how_many_there_are():
    with pytest.raises(Unsupported, match="--device cuda:2: there are 2 GPUs, numbered from 0"):
        find_machine("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_free_memory_of_a_gpu_is_the_drivers_word():
    assert free_bytes(find_machine("cuda:1")) == 7 * GIB


def test_there_is_free_memory_here():
    assert free_bytes(find_machine("cpu")) > 0


def cgroup(folder: Path, limit: str, used: int, cached: int | None) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    statistics = f"anon 1\nfile 2\ninactive_file {cached}\nactive_file 3\n" if cached is not None else "anon 1\n"
    (folder / "memory.stat").write_text(statistics)


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        ("1000", 400, 0, 600),
        ("1000", 400, None, 600),
        ("1000", 950, 900, 950),  # files that were read give way
        ("1000", 1100, 0, 0),  # over the limit for a moment
        ("max", 400, 0, module.UNLIMITED),
    ],
)
def test_a_containers_limit_counts(
    limit: str, used: int, cached: int | None, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cgroup(tmp_path, limit, used, cached)
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr(module, "_system_free_bytes", lambda: 1 << 61)
    assert free_bytes(Machine("cpu", "cpu")) == min(free, 1 << 61)


def test_without_a_container_the_systems_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CGROUP", tmp_path / "missing")
    monkeypatch.setattr(module, "_system_free_bytes", lambda: 12345)
    assert free_bytes(Machine("cpu", "cpu")) == 12345


def test_the_last_level_cache_is_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = {"index0": "32K", "index1": "1M", "index2": "33M", "index3": "odd"}
    for name, text in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{text}\n")
    monkeypatch.setattr(module, "Path", lambda _: tmp_path)
    assert cpu_cache_bytes.__wrapped__() == 33 << 20
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "missing")
    assert cpu_cache_bytes.__wrapped__() == 0
