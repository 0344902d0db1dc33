"""CUDA events around each call, or each phase: available everywhere; their own cost is measured and subtracted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.timing.gate import Gate, enqueue_ms
from flashinfer_perf.timing.overhead import event_overhead_ms
from flashinfer_perf.timing.target import Target, poison_outputs
from flashinfer_perf.timing.unrotated import UnrotatedTimer

EVENT_TICK_MS = 0.0005
"""Resolution of cudaEventElapsedTime, by its documentation."""


class CudaEventTimer(UnrotatedTimer):
    """Enqueues gate, event, call, event; then waits."""

    name = "cuda_event"
    tick_ms = EVENT_TICK_MS
    calls_per_sample = 1

    def open(self, target: Target) -> None:
        super().open(target)
        self._steps = target.launch.steps()
        target.make_ready()
        returned = target.launch()
        target.make_ready()
        slowest_enqueue_ms = max(target.ranks.all_gather(enqueue_ms(target.launch)))
        self._gate = Gate(slowest_enqueue_ms, target.launch.host_sync)
        self._overhead_ms = event_overhead_ms(torch.cuda.current_device())
        self._marks = [(_event(), _event()) for _ in self._steps]
        poison_outputs(target.launch, target.restores, returned)

    def sample(self, count: int) -> list[tuple[float, ...]]:
        return [self._once() for _ in range(count)]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "gate": self._gate.length.description,
            "in_graph": False,
            "voided_samples": self._gate.length.voided,
            "overhead_subtracted": self._overhead_ms,
        }

    def close(self) -> None:
        super().close()
        self._steps = []

    def _once(self) -> tuple[float, ...]:
        while not self._gate.length.accept(self.target.everywhere(self._enqueue())):
            pass
        return tuple(max(before.elapsed_time(after) - self._overhead_ms, 0.0) for before, after in self._marks)

    def _enqueue(self) -> bool:
        """Makes one call; whether its gate was closed until all of it was enqueued."""
        self._returned = result = None
        self.target.make_ready()
        self._gate.close(opened=self._marks[0][0], line_up=self.target.start_together)
        for number, (step, (before, after)) in enumerate(zip(self._steps, self._marks, strict=True)):
            if number:
                self.target.start_together()
                before.record()
            result = step(result)
            after.record()
        held = self._gate.held()
        torch.cuda.synchronize()
        self._returned = result
        return held


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
