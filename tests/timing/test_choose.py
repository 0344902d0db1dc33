"""Which clock is used, and what is said when it is not the one wished for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.stop_rules import FixedNumber, TargetPrecision, TimeBudget
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing import choose
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.choose import Wish, choose_stop_rule, open_timer, wish_of
from flashinfer_perf.timing.cuda_graph import NotCapturable
from flashinfer_perf.timing.target import Target

GPU = Machine("cuda:0", "fake", (9, 0))
CPU = Machine("cpu", "cpu")
MISSING = "CUPTI is not installed. Try 'pip install -U cupti-python'."


class FakeTimer:
    opened: ClassVar[list[str]] = []
    capturable = True

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, target: Any) -> None:
        if "graph" in self.name and not FakeTimer.capturable:
            raise NotCapturable("The call cannot be captured: it syncs.")
        FakeTimer.opened.append(self.name)

    def close(self) -> None:
        FakeTimer.opened.append(f"close {self.name}")


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch):
    FakeTimer.opened, FakeTimer.capturable = [], True
    monkeypatch.setattr(choose, "CpuTimer", lambda: FakeTimer("cpu"))
    monkeypatch.setattr(choose, "CudaEventTimer", lambda: FakeTimer("event"))
    monkeypatch.setattr(choose, "CudaGraphTimer", lambda work_bytes: FakeTimer("graph"))
    monkeypatch.setattr(choose, "CuptiTimer", lambda in_graph: FakeTimer("cupti graph" if in_graph else "cupti"))
    monkeypatch.setattr(choose, "why_unavailable", lambda: "")


def target(**changes: Any) -> Target:
    launch = Launch(**({"fn": print} | changes))
    return Target(launch, (), Warm(), SingleRank())


def chosen(machine: Machine, wish: Wish, **changes: Any) -> tuple[str, str]:
    opened = open_timer(machine, wish, target(**changes), work_bytes=0)
    return opened.timer.name, opened.fallback_reason


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (Wish(), "cupti graph"),
        (Wish(graph=False), "cupti"),
        (Wish(cupti=False), "graph"),
        (Wish(cupti=False, graph=False), "event"),
    ],
)
def test_the_clock_wished_for_is_used_where_it_can(wish: Wish, name: str):
    assert chosen(GPU, wish) == (name, "")


def test_a_cpu_has_one_clock():
    assert chosen(CPU, Wish()) == ("cpu", "")


def test_without_cupti_the_documented_line_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose, "why_unavailable", lambda: MISSING)
    assert chosen(GPU, Wish()) == ("graph", f"{MISSING} Falling back to CUDA events.")
    assert chosen(GPU, Wish(graph=False)) == ("event", f"{MISSING} Falling back to CUDA events.")


def test_what_cannot_be_captured_is_timed_without_a_graph_and_the_failed_clock_is_closed():
    FakeTimer.capturable = False
    assert chosen(GPU, Wish()) == ("cupti", "The call cannot be captured: it syncs.")
    assert FakeTimer.opened == ["close cupti graph", "cupti"]
    assert chosen(GPU, Wish(cupti=False))[0] == "event"


@pytest.mark.parametrize("wish", [Wish(strict=True), Wish(cupti=False, strict=True)])
def test_strict_fails_rather_than_fall_back(wish: Wish):
    FakeTimer.capturable = False
    with pytest.raises(Unsupported, match="--strict_timer: The call cannot be captured"):
        chosen(GPU, wish)


def test_strict_fails_without_cupti(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose, "why_unavailable", lambda: MISSING)
    with pytest.raises(Unsupported) as caught:
        chosen(GPU, Wish(strict=True))
    assert str(caught.value) == f"--strict_timer: {MISSING.rstrip('.')}"


def test_phases_are_timed_by_events():
    phases = (Phase("a", print), Phase("b", print))
    name, reason = chosen(GPU, Wish(), fn=None, phases=phases)
    assert (name, reason) == ("event", "The phases of a call are timed by CUDA events.")


def test_phases_that_are_not_timed_apart_are_timed_as_a_whole():
    phases = (Phase("a", print), Phase("b", print))
    assert chosen(GPU, Wish(), fn=None, phases=phases, timed_apart=False) == ("cupti graph", "")


def test_cupti_is_not_used_where_the_launch_forbids_it():
    reason = "Somebody else listens."
    assert chosen(GPU, Wish(), no_cupti=reason) == ("graph", reason)
    assert chosen(GPU, Wish(cupti=False), no_cupti=reason) == ("graph", "")


def test_ranks_that_line_up_are_timed_by_events():
    several = replace(target(), line_up=lambda: None)
    opened = open_timer(GPU, Wish(), several, work_bytes=0)
    assert (opened.timer.name, opened.fallback_reason) == (
        "event",
        "Calls of several ranks, which start together, are timed by CUDA events.",
    )


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_clock_that_fails_to_open_is_closed_and_no_other_one_tried(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    class Failing(FakeTimer):
        def open(self, target: Any) -> None:
            raise error

    monkeypatch.setattr(choose, "CudaGraphTimer", lambda work_bytes: Failing("graph"))
    with pytest.raises(type(error)):
        chosen(GPU, Wish(cupti=False))
    assert FakeTimer.opened == ["close graph"]


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        (Options(), Wish(cupti=True, graph=True, strict=False)),
        (Options(use_cuda_events=True), Wish(cupti=False)),
        (Options(no_cuda_graph=True), Wish(graph=False)),
        (Options(strict_timer=True), Wish(strict=True)),
        (Options(use_cupti=True), Wish()),
    ],
)
def test_wishes_follow_the_options(options: Options, wish: Wish):
    assert wish_of(options) == wish


def test_stop_rules_follow_the_options():
    assert choose_stop_rule(Options(num_iters=7)) == FixedNumber(7)
    assert choose_stop_rule(Options(target_precision=0.02)) == TargetPrecision(0.02)
    assert choose_stop_rule(Options(max_time=3.0)) == TimeBudget(3.0, FixedNumber(30))
