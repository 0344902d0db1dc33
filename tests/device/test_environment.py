from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

import flashinfer_perf
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.device import environment as module
from flashinfer_perf.device.environment import environment_of, flashinfer_version
from flashinfer_perf.sinks.columns import RESULTS

CPU = Machine("cpu", "cpu")
GPU = Machine("cuda:1", "NVIDIA H200", (9, 0), 50 << 20)
KEYS = [
    "gpu",
    "compute_capability",
    "driver_version",
    "cuda_version",
    "torch_version",
    "flashinfer_version",
    "flashinfer_perf_version",
    "python_version",
    "platform",
    "cpu",
    "device",
]


@pytest.fixture(autouse=True)
def _asked_anew():
    environment_of.cache_clear()
    yield
    environment_of.cache_clear()


def test_the_environment_is_plain_text():
    found = environment_of(CPU)
    assert list(found) == KEYS
    assert all(isinstance(value, str) for value in found.values())
    assert json.loads(json.dumps(found)) == found


def test_every_entry_has_a_column():
    assert set(KEYS) - set(RESULTS) == {"device"}  # which is a general option, too


def test_on_a_cpu_there_is_no_gpu_to_name():
    found = environment_of(CPU)
    assert (found["gpu"], found["compute_capability"], found["driver_version"]) == ("", "", "")
    assert found["torch_version"] == torch.__version__
    assert found["flashinfer_perf_version"] == flashinfer_perf.__version__
    assert found["cpu"]


def test_a_gpu_is_named_with_its_driver(monkeypatch: pytest.MonkeyPatch):
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.1")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = environment_of(GPU)
    assert (found["gpu"], found["compute_capability"]) == ("NVIDIA H200", "9.0")
    assert (found["driver_version"], found["device"]) == ("580.1", "cuda:1")


def broken_nvml() -> SimpleNamespace:
    def fail() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    return SimpleNamespace(nvmlInit=fail)


@pytest.mark.parametrize("nvml", [None, broken_nvml()], ids=["not installed", "no driver"])
def test_a_driver_that_does_not_tell_costs_its_version_and_no_more(nvml: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert environment_of(GPU)["driver_version"] == ""


def test_flashinfer_is_looked_up_without_importing_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)  # an import would raise
    assert flashinfer_version()
    monkeypatch.setattr(module, "installed_version", lambda name: f"{name} 0.0")
    assert flashinfer_version() == "flashinfer-python 0.0"
