"""``bench_gpu_time``: this program's clocks for your own code.

from flashinfer_perf.testing import bench_gpu_time

median_ms, std_ms = bench_gpu_time(my_kernel, args=(q, k, v))
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashinfer_perf.core.record import Measurement
from flashinfer_perf.core.stop_rules import FixedNumber
from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.launch import Launch, tensors_in
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.choose import Wish, open_timer
from flashinfer_perf.timing.measure import measure
from flashinfer_perf.timing.target import Target

__all__ = ["GpuTime", "bench_gpu_time"]

RENAMED = {
    "repeat_iters": "num_iters",
    "input_args": "args",
    "input_kwargs": "kwargs",
    "l2_flush": "cold_l2_cache",
    "use_cuda_graph": "rotate_buffers=True, which times inside a CUDA graph",
    "dry_run_time_ms": "dry_run_iters",
    "repeat_time_ms": "num_iters",
    "l2_flush_size_mb": "cold_l2_cache",
    "l2_flush_device": "cold_l2_cache",
    "num_iters_within_graph": "rotate_buffers",
    "sleep_after_run": "nothing: launches are gated",
    "aggregate_op": "nothing: one process is timed",
}
"""Keywords of ``flashinfer.testing.bench_gpu_time``, which gives a list of times and not (median, std)."""

_warned: set[str] = set()


class GpuTime(tuple[float, float]):
    """(median, standard deviation) in milliseconds, with everything that is known of them.

    Attributes:
        samples_ms: every sample.
        measurement: which clock measured, the cache's state, the gate: what was really done.
    """

    measurement: Measurement

    def __new__(cls, measurement: Measurement) -> GpuTime:
        result = super().__new__(cls, (measurement.summary.median_ms, measurement.summary.std_ms))
        result.measurement = measurement
        return result

    @property
    def samples_ms(self) -> tuple[float, ...]:
        return self.measurement.samples_ms


def bench_gpu_time(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    enable_cupti: bool = True,
    num_iters: int = 30,
    dry_run_iters: int = 5,
    cold_l2_cache: bool | None = None,
    rotate_buffers: bool = False,
    **refused: Any,
) -> GpuTime:
    """Times ``fn(*args, **kwargs)`` on the device of its tensors.

    Args:
        fn: what to time. Its inputs are not restored between calls.
        args, kwargs: its arguments. Tensors in them, also in lists and dictionaries, decide the device; without any,
            it is the current CUDA GPU, or the CPU where there is none.
        enable_cupti: prefer CUPTI; where it is missing, a warning is printed and CUDA events are used.
        num_iters: measured calls.
        dry_run_iters: calls before.
        cold_l2_cache: sweep the cache before each call. By default on a GPU, not on a CPU.
        rotate_buffers: time inside a CUDA graph that goes through copies of the tensors, so that each call finds a
            cold cache; implies ``cold_l2_cache`` and no CUPTI.

    Returns:
        (median, std) in milliseconds, with ``samples_ms`` and ``measurement``.

    Raises:
        TypeError: for a keyword of ``flashinfer.testing.bench_gpu_time``, naming the one to use.
        ValueError: when there is nothing to measure, or no tensor to rotate.
    """
    _refuse(refused)
    if num_iters < 1 or dry_run_iters < 0:
        raise ValueError(
            f"num_iters must be at least 1 and dry_run_iters at least 0, not {num_iters} and {dry_run_iters}"
        )
    tensors = list(tensors_in([*args, *(kwargs or {}).values()]))
    if rotate_buffers and not tensors:
        raise ValueError("rotate_buffers needs tensors to rotate: pass them in args or kwargs, not in a closure")
    machine = find_machine(str(tensors[0].device) if tensors else "auto")
    cold = True if rotate_buffers else cold_l2_cache
    cache = cache_policy({None: None, True: "cold", False: "warm"}[cold], machine)
    launch = _launch(fn, args, kwargs or {})
    wish = Wish(cupti=enable_cupti and not rotate_buffers, graph=rotate_buffers)
    target = Target(launch, (), cache, SingleRank())
    with torch.no_grad():
        opened = open_timer(machine, wish, target, work_bytes=0)
        _warn_once(opened.fallback_reason)
        try:
            return GpuTime(measure(target, opened, FixedNumber(num_iters), dry_run_iters))
        finally:
            opened.timer.close()


def _launch(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Launch:
    """By keyword, whatever the function's signature: positions get names of their own."""

    def call(positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return fn(*positional, **named)

    return Launch(call, kwargs={"positional": tuple(args), "named": dict(kwargs)})


def _refuse(keywords: Mapping[str, Any]) -> None:
    for name in keywords:
        use = f"; use {RENAMED[name]}" if name in RENAMED else ""
        raise TypeError(
            f"bench_gpu_time() of flashinfer_perf has no argument {name!r}{use}. It returns (median, std) in ms, "
            "unlike flashinfer.testing.bench_gpu_time"
        )


def _warn_once(reason: str) -> None:
    """The documented line, once in a process."""
    if reason and reason not in _warned:
        _warned.add(reason)
        print(f"[WARNING] {reason}", file=sys.stderr)
