"""What the backends of this project's own kernels need."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines import all_routines, ours

HOPPER = Machine("cuda:0", "NVIDIA H200", (9, 0))


def reason(monkeypatch, installed, version):
    monkeypatch.setattr(ours, "is_installed", lambda module: installed)
    monkeypatch.setattr(ours, "installed_version", lambda distribution: version)
    return ours.triton_installed.unmet(HOPPER, None)


@pytest.mark.parametrize("version", ["3.6.0", "3.10.1", "4.0", "3.6.0+git1234", "not installed"])
def test_a_triton_that_is_new_enough_will_do(monkeypatch, version):
    assert reason(monkeypatch, True, version) is None


@pytest.mark.parametrize("version", ["3.5.1", "2.11"])
def test_an_older_one_is_named(monkeypatch, version):
    assert reason(monkeypatch, True, version) == f"it needs triton 3.6 or newer, and {version} is installed"


def test_where_there_is_none_it_says_where_it_comes_from(monkeypatch):
    assert reason(monkeypatch, False, "not installed") == "triton is not installed; PyTorch for CUDA brings it on Linux"


def test_every_backend_on_our_kernels_needs_triton_and_a_gpu():
    found = [routine.backends["triton"] for routine in all_routines().values() if "triton" in routine.backends]
    assert found
    assert all(ours.triton_installed in backend.requires for backend in found)
    assert all(any(need.on_capability for need in backend.requires) for backend in found)
