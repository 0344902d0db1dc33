"""What a clock itself adds to a reading, measured on the device with kernels of known length.

The rule: a reading is what one more such call would cost in a stream (events) or in a graph (graphs). Whatever a row of
n kernels takes beyond n times the cost of one more of them is the clock's own, and is subtracted: the pair of events,
the replay, the separators between captured calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.timing.gate import spin

READINGS = 41
LENGTHS_MS = (0.0, 0.002, 0.005)
"""Of the kernels that are read, alone and in rows; what starting the next one costs depends on how long they last."""
SHORT, LONG = 1, 11
"""Graphs of so many kernels give the cost of one more kernel in a graph."""
GATE_MS = 0.5
"""Hides the enqueueing of all that is read."""


def empty_kernel() -> None:
    """A kernel of one thread that ends at once."""
    torch.cuda._sleep(0)


@cache
def event_overhead_ms(device: int) -> float:
    """Of a pair of events around a call: what two kernels in a row take less than twice one of them, on average."""
    estimates = []
    for length_ms in LENGTHS_MS:
        one, two = (_reading(lambda count=count, length_ms=length_ms: _row(count, length_ms)) for count in (1, 2))
        estimates.append(2 * one - two)
    return max(statistics.mean(estimates), 0.0)


@cache
def graph_overhead_ms(device: int, calls: int) -> float:
    """Of replaying a graph of so many separated calls, all of it: what it takes beyond so many kernels in a graph."""
    estimates = []
    for length_ms in LENGTHS_MS:
        replayed = _reading(_graph(calls, length_ms, separated=True).replay)
        estimates.append(replayed - calls * _graph_kernel_ms(device, length_ms))
    return max(statistics.mean(estimates), 0.0)


@cache
def _graph_kernel_ms(device: int, length_ms: float) -> float:
    """What one more kernel costs in a graph without separators."""
    short, long = (_reading(_graph(count, length_ms, separated=False).replay) for count in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def _row(count: int, length_ms: float) -> None:
    for _ in range(count):
        spin(length_ms)


def _graph(count: int, length_ms: float, separated: bool) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for position in range(count):
            if position and separated:
                empty_kernel()
            spin(length_ms)
    return graph


def _reading(enqueue: Callable[[], Any]) -> float:
    """The shortest of many gated event readings, in milliseconds: noise only ever adds."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    readings = []
    for _ in range(READINGS):
        spin(GATE_MS)
        start.record()
        enqueue()
        end.record()
        torch.cuda.synchronize()
        readings.append(start.elapsed_time(end))
    return min(readings)
