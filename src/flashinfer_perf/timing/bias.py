"""How far each clock is from the truth in this process: what kernels of known length read."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing.activity import why_unavailable
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.cuda_event import CudaEventTimer
from flashinfer_perf.timing.cuda_graph import CudaGraphTimer
from flashinfer_perf.timing.cupti import CuptiTimer
from flashinfer_perf.timing.target import Target

SPIN_US = 10
DRY_RUNS, SAMPLES = 10, 21

CLOCKS: dict[str, Callable[[], Any]] = {
    "cuda_event": CudaEventTimer,
    "cuda_graph": lambda: CudaGraphTimer(0),
    "cupti": lambda: CuptiTimer(in_graph=False),
    "cupti_in_graph": lambda: CuptiTimer(in_graph=True),
}
"""CUPTI last: once it has been used, kernels in the process start a little later."""


@functools.cache
def clock_bias(machine: Machine, with_cupti: bool) -> dict[str, dict[str, float]]:
    """By clock: the reading of a kernel that does nothing, and the reading of a spin less what the spin says itself.

    Microseconds. Measured once in a process; empty without a GPU, or where Triton cannot make the kernels.
    """
    if not machine.is_cuda:
        return {}
    names = [name for name in CLOCKS if "cupti" not in name or (with_cupti and not why_unavailable())]
    try:
        from flashinfer_perf.kernels import probes
    except ImportError:
        return {}
    stamps = torch.zeros(2, dtype=torch.int64, device=machine.device)
    nothing = Launch(probes.nothing, kwargs={"scratch": stamps})
    spin = Launch(probes.wait, kwargs={"stamps": stamps, "microseconds": SPIN_US})
    return {name: _bias(CLOCKS[name], nothing, spin, stamps) for name in names}


def _bias(make_timer: Callable[[], Any], nothing: Launch, spin: Launch, stamps: torch.Tensor) -> dict[str, float]:
    empty, spun = _reading_us(make_timer(), nothing), _reading_us(make_timer(), spin)
    return {"null_kernel_us": empty, "spin_bias_us": spun - int(stamps[1] - stamps[0]) / 1e3}


def _reading_us(timer: Any, launch: Launch) -> float:
    timer.open(Target(launch, (), Warm(), SingleRank()))
    try:
        timer.sample(DRY_RUNS)
        return statistics.median(sum(phases) for phases in timer.sample(SAMPLES)) * 1e3
    finally:
        timer.close()
