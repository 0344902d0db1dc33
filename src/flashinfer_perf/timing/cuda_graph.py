"""CUDA graphs: many calls in one graph, each on buffers of its own, timed by events around the replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.run.failure import first_line
from flashinfer_perf.run.launch import Copies, Launch
from flashinfer_perf.timing.cuda_event import EVENT_TICK_MS
from flashinfer_perf.timing.gate import Gate, enqueue_ms
from flashinfer_perf.timing.overhead import empty_kernel, graph_overhead_ms
from flashinfer_perf.timing.rotation import Rotation, buffer_bytes, plan_rotation
from flashinfer_perf.timing.target import Target, poison_outputs

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs

WARM_UP_CALLS = 3


class CudaGraphTimer:
    """The median over replays of a replay's time divided by its calls."""

    name = "cuda_graph"

    def __init__(self, work_bytes: float) -> None:
        self._work_bytes = work_bytes
        self.calls_per_sample = 1

    @property
    def tick_ms(self) -> float:
        return EVENT_TICK_MS / self.calls_per_sample

    def open(self, target: Target) -> None:
        refuse_what_cannot_be_captured(target.launch)
        self._target = target
        self._rotation = self._plan(target)
        self.calls_per_sample = self._rotation.calls
        self._sets, self._restores = rotated(target, self._rotation.sets)
        self._graph = capture(self._sets, self._rotation.calls)
        self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        self._overhead_ms = graph_overhead_ms(torch.cuda.current_device(), self._rotation.calls)
        self._make_ready()
        self._graph.replay()
        self._gate = Gate(enqueue_ms(self._graph.replay))
        for launch in self._sets:
            poison_outputs(launch, self._restores, self._graph.returned)

    def sample(self, count: int) -> list[tuple[float, ...]]:
        return [self._once() for _ in range(count)]

    def last_outputs(self) -> Outputs:
        last = self._sets[(self._rotation.calls - 1) % self._rotation.sets]
        return last.outputs(self._graph.returned)

    @property
    def cache_description(self) -> str:
        return self._rotation.description

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "gate": self._gate.length.description,
            "in_graph": True,
            "voided_samples": self._gate.length.voided,
            "overhead_subtracted": self._overhead_ms / self.calls_per_sample,
        }

    def close(self) -> None:
        self.__dict__.pop("_graph", None)
        self._sets, self._restores = [], []

    def _plan(self, target: Target) -> Rotation:
        set_bytes = buffer_bytes(target.launch.data())
        touched = int(min(set_bytes, self._work_bytes or set_bytes))
        free = torch.cuda.mem_get_info()[0]
        return plan_rotation(target.cache.cold, touched, set_bytes, target.cache.cache_bytes, free)

    def _once(self) -> tuple[float, ...]:
        while not self._gate.length.accept(self._enqueue()):
            pass
        took = self._events[0].elapsed_time(self._events[1]) - self._overhead_ms
        return (max(took, 0.0) / self.calls_per_sample,)

    def _enqueue(self) -> bool:
        self._make_ready()
        self._gate.close(opened=self._events[0])
        self._graph.replay()
        self._events[1].record()
        held = self._gate.held()
        torch.cuda.synchronize()
        return held

    def _make_ready(self) -> None:
        """Restores every set, then clears the cache of what that left there."""
        for copy, original in self._restores:
            copy.copy_(original)
        self._target.cache.prepare()
        self._target.ranks.barrier()


class NotCapturable(Exception):
    """A call that no CUDA graph can hold; the text says why."""


def refuse_what_cannot_be_captured(launch: Launch) -> None:
    """Raises NotCapturable for a launch that says so, waits for the device, or has phases to be timed one by one."""
    if launch.no_graph:
        raise NotCapturable(launch.no_graph)
    if launch.host_sync:
        raise NotCapturable("The call waits for the device, which a CUDA graph cannot hold.")
    if launch.phase_names:
        raise NotCapturable("The phases of a call cannot be timed inside a CUDA graph.")


def rotated(target: Target, sets: int) -> tuple[list[Launch], list[tuple[Any, Any]]]:
    """The launch on so many sets of buffers, and (copy, original) for every input in them that it changes."""
    originals = {id(private): original for private, original in target.restores}
    launches, restores = [target.launch], list(target.restores)
    for _ in range(sets - 1):
        copies = Copies()
        launches.append(target.launch.on_copies(copies))
        restores += [(copy, originals[id(private)]) for copy, private in copies.pairs if id(private) in originals]
    return launches, restores


@dataclass
class Captured:
    """A graph and what its last call returned."""

    graph: Any
    returned: Any = None

    def replay(self) -> None:
        self.graph.replay()


def capture(sets: list[Launch], calls: int) -> Captured:
    """A graph of so many calls, each on the next set. Raises NotCapturable.

    Between two calls stands an empty kernel: it waits for the whole call before it, so that programmatic dependent
    launch cannot start a call early. Its time is part of the overhead that is subtracted. (An event between them costs
    less in a short graph; in one of a hundred calls, four times as much.)
    """
    warm_up(sets)
    captured = Captured(torch.cuda.CUDAGraph())
    try:
        with torch.cuda.graph(captured.graph):
            for call in range(calls):
                if call:
                    empty_kernel()
                captured.returned = sets[call % len(sets)]()
    except RuntimeError as error:  # the same call has just worked outside of a capture
        torch.cuda.synchronize()
        raise NotCapturable(f"The call cannot be captured: {first_line(error)}.") from error
    return captured


def warm_up(sets: list[Launch]) -> None:
    """Calls every set on a side stream, as capturing demands: what is loaded or compiled lazily is so by then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in range(max(WARM_UP_CALLS, len(sets))):
            sets[call % len(sets)]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
