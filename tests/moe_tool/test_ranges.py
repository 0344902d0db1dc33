from __future__ import annotations

import contextlib

import pytest
import torch

from flashinfer_perf.moe_tool.cases import CONTESTANTS
from flashinfer_perf.moe_tool.ranges import in_range, ranged
from tests.moe_tool.layers import HOPPER, made


@pytest.fixture
def named(monkeypatch):
    """What a profiler would be told."""
    found = []

    @contextlib.contextmanager
    def range_(name):
        found.append(name)
        yield
        found.append(f"end of {name}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range", range_)
    return found


def test_each_invocation_has_a_range(named):
    call = in_range("kernel", lambda x, *, y: x + y)
    assert (call(1, y=2), call(3, y=4)) == (3, 7)
    assert named == ["kernel", "end of kernel"] * 2


def test_so_has_all_that_a_backend_does(named):
    for number, contestant in enumerate(CONTESTANTS):
        name = contestant.routine.name
        flags, problem, _ = made(number, HOPPER)
        backend = contestant.routine.backends["torch"]
        with backend.state():
            backend.prepare(flags, problem)()
        assert named == [name, name, f"end of {name}", f"end of {name}"]
        named.clear()


def test_on_the_cpu_nothing_is_between_the_clock_and_the_call(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert in_range("kernel", len) is len
    with ranged("kernel"):
        pass
