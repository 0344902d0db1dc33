"""CUPTI: the device's own record of when each kernel began and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashinfer_perf.core.statistics import percentile
from flashinfer_perf.lazy import torch
from flashinfer_perf.timing.activity import Activity, ActivityLog
from flashinfer_perf.timing.cuda_graph import capture, refuse_what_cannot_be_captured
from flashinfer_perf.timing.gate import Gate, enqueue_ms, spin
from flashinfer_perf.timing.target import Target, poison_outputs
from flashinfer_perf.timing.unrotated import UnrotatedTimer

MARK = "spin_kernel"
"""In the name of the kernel behind ``gate.spin``: one before a timed call and one after it mark it on the device."""
MARK_MS = 0.001


class LostActivities(RuntimeError):
    """CUPTI did not deliver what must have been there."""


@dataclass(frozen=True)
class Call:
    """What the device did for one call."""

    activities: tuple[Activity, ...]

    @property
    def span_ms(self) -> float:
        """From the first start to the last end."""
        return (max(a.end_ns for a in self.activities) - min(a.start_ns for a in self.activities)) / 1e6

    @property
    def busy_ms(self) -> float:
        """Of that, the time in which at least one activity ran."""
        busy, until = 0, 0
        for activity in self.activities:
            busy += max(activity.end_ns - max(activity.start_ns, until), 0)
            until = max(until, activity.end_ns)
        return busy / 1e6


def split_calls(activities: Sequence[Activity], count: int) -> list[Call]:
    """The activities between the marks of each call; ``activities`` in order of their start.

    Raises:
        LostActivities: when there are not two marks for each call, or nothing between them.
    """
    marks = [index for index, activity in enumerate(activities) if MARK in activity.name]
    if len(marks) != 2 * count:
        raise LostActivities(
            f"CUPTI recorded {len(marks)} marks for {count} calls: records were lost, as to another profiler in this "
            f"process, or the call itself launches torch's {MARK}; use --use_cuda_events"
        )
    calls = [Call(tuple(activities[a + 1 : b])) for a, b in zip(marks[0::2], marks[1::2], strict=True)]
    if not all(call.activities for call in calls):
        raise LostActivities("CUPTI recorded no kernel for a call")
    return calls


class CuptiTimer(UnrotatedTimer):
    """Times each call by its activities: their span. Inside a graph, the graph holds one call."""

    name = "cupti"
    tick_ms = 1e-6
    calls_per_sample = 1

    def __init__(self, in_graph: bool) -> None:
        super().__init__()
        self._in_graph = in_graph
        self._log = ActivityLog()
        self._calls: list[Call] = []

    def open(self, target: Target) -> None:
        super().open(target)
        self._run, self._returned = self._runner(target)
        target.make_ready()
        self._run()
        target.make_ready()
        self._gate = Gate(enqueue_ms(self._run), target.launch.host_sync)
        self._opened = torch.cuda.Event()
        self._log.open()
        poison_outputs(target.launch, target.restores, self._returned)

    def sample(self, count: int) -> list[tuple[float, ...]]:
        self._log.take()
        accepted: list[bool] = []
        while sum(accepted) < count:
            accepted.append(self._gate.length.accept(self._enqueue()))
        every = split_calls(self._log.take(), len(accepted))
        calls = [call for call, counts in zip(every, accepted, strict=True) if counts]
        self._calls += calls
        return [(call.span_ms,) for call in calls]

    @property
    def facts(self) -> Mapping[str, Any]:
        names = dict.fromkeys(activity.name for call in self._calls for activity in call.activities)
        counts = sorted({len(call.activities) for call in self._calls})
        return {
            "gate": self._gate.length.description,
            "in_graph": self._in_graph,
            "voided_samples": self._gate.length.voided,
            "busy": percentile(sorted(call.busy_ms for call in self._calls), 50) if self._calls else None,
            "kernels": counts[0] if len(counts) == 1 else counts,
            "kernel_names": list(names),
        }

    def close(self) -> None:
        self._log.close()
        self.__dict__.pop("_run", None)
        super().close()

    def _runner(self, target: Target) -> tuple[Any, Any]:
        if not self._in_graph:
            return self._call, None
        refuse_what_cannot_be_captured(target.launch)
        captured = capture([target.launch], 1)
        return captured.replay, captured.returned

    def _call(self) -> None:
        self._returned = self.target.launch()

    def _enqueue(self) -> bool:
        """Everything before the first mark is over when the call is enqueued, so only the call lies between marks."""
        self.target.make_ready()
        torch.cuda.synchronize()
        if self._gate.length.ungated:
            spin(MARK_MS)
        self._gate.close(opened=self._opened)
        self._run()
        held = self._gate.held()
        torch.cuda.synchronize()
        spin(MARK_MS)
        torch.cuda.synchronize()
        return held
