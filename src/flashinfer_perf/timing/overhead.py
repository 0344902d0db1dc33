"""What a clock itself adds to a reading, measured on the device: what it reads of calls that do nothing.

The rule: a reading is how much longer a call takes than an empty kernel would. The pair of events, starting and ending
a kernel, the replay and the separators between captured calls are in both, and so in neither reading that is reported.
What the device pauses between the kernels of one call is that call's own, and stays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.timing.gate import spin

READINGS = 101
INSTANCES = 3
"""Graphs of the same calls: one may be a tenth of a microsecond slower than the next."""
GATE_MS = 0.2
"""Hides the enqueueing of all that is read."""


def empty_kernel() -> None:
    """A kernel of one thread that ends at once."""
    torch.cuda._sleep(0)


@cache
def event_overhead_ms(device: int) -> float:
    """Of a pair of events around a call."""
    return _reading(empty_kernel)


@cache
def graph_overhead_ms(device: int, calls: int) -> float:
    """Of replaying a graph of so many separated calls, all of it."""
    return statistics.mean(_reading(_empty_graph(calls).replay) for _ in range(INSTANCES))


def _empty_graph(calls: int) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2 * calls - 1):  # the calls and what separates them
            empty_kernel()
    return graph


def _reading(enqueue: Callable[[], Any]) -> float:
    """The median of many gated event readings, in milliseconds."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    readings = []
    for _ in range(READINGS):
        spin(GATE_MS)
        start.record()
        enqueue()
        end.record()
        torch.cuda.synchronize()
        readings.append(start.elapsed_time(end))
    return statistics.median(readings)
