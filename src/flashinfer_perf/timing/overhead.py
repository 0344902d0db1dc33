"""What a clock itself adds to a reading, measured on the device with kernels of known length.

The rule: a reading is what one more such call would cost in a stream (events) or in a graph (graphs). Whatever a row of
n kernels takes beyond n times the cost of one more of them is the clock's own, and is subtracted: the pair of events,
the replay, the separators between captured calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.timing.gate import spin

READINGS = 41
SHORT, LONG = 1, 21
"""Lengths of the two rows whose difference gives the cost of one more kernel."""
BODY_MS = 0.002
"""Length of a kernel in these rows: starting the next one costs more behind a kernel that lasts than behind an empty
one, and differs less from machine to machine."""
GATE_MS = 0.5
"""Hides the enqueueing of LONG kernels."""


def empty_kernel() -> None:
    """A kernel of one thread that ends at once."""
    torch.cuda._sleep(0)


@cache
def event_overhead_ms(device: int) -> float:
    """Of a pair of events around a call."""
    short, long = (_reading(lambda count=count: _row(count)) for count in (SHORT, LONG))
    return max(short - SHORT * (long - short) / (LONG - SHORT), 0.0)


@cache
def graph_overhead_ms(device: int, calls: int) -> float:
    """Of replaying a graph of so many separated calls, all of it."""
    return max(_reading(_graph(calls, separated=True).replay) - calls * _graph_body_ms(device), 0.0)


@cache
def _graph_body_ms(device: int) -> float:
    """What one more kernel costs in a graph without separators."""
    short, long = (_reading(_graph(count, separated=False).replay) for count in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def _row(count: int) -> None:
    for _ in range(count):
        spin(BODY_MS)


def _graph(count: int, separated: bool) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for position in range(count):
            if position and separated:
                empty_kernel()
            spin(BODY_MS)
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
