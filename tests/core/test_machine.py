from __future__ import annotations

import dataclasses

import pytest

from flashinfer_perf.core.machine import Machine


def test_a_cpu_has_no_compute_capability():
    machine = Machine("cpu", "cpu")
    assert not machine.is_cuda
    assert machine.compute_capability_text == ""


@pytest.mark.parametrize(("capability", "text"), [((9, 0), "9.0"), ((10, 3), "10.3"), ((7, 5), "7.5")])
def test_a_gpu_shows_its_compute_capability(capability, text):
    machine = Machine("cuda:1", "NVIDIA H100", compute_capability=capability)
    assert machine.is_cuda
    assert machine.compute_capability_text == text


def test_a_machine_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Machine("cpu", "cpu").name = "other"
