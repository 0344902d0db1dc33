"""Which clock times a case."""

from __future__ import annotations

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.stop_rules import FixedNumber, StopRule, TargetPrecision, TimeBudget
from flashinfer_perf.timing.cpu import CpuTimer
from flashinfer_perf.timing.timer import Timer


def choose_timer(machine: Machine, options: Options) -> Timer:
    """The clock for a device.

    Raises:
        Unsupported: for a device without one.
    """
    if machine.is_cuda:
        raise Unsupported("this version has no clock for CUDA GPUs; run with --device cpu")
    return CpuTimer()


def choose_stop_rule(options: Options) -> StopRule:
    """--num_iters, or --target_precision in its place; either within --max_time."""
    precision, seconds = options.target_precision, options.max_time
    rule: StopRule = FixedNumber(options.num_iters) if precision is None else TargetPrecision(precision)
    return rule if seconds is None else TimeBudget(seconds, rule)
