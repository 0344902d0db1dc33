"""Which clock times a launch, and why it is not the one that was wished for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.stop_rules import FixedNumber, StopRule, TargetPrecision, TimeBudget
from flashinfer_perf.timing.activity import why_unavailable
from flashinfer_perf.timing.cpu import CpuTimer
from flashinfer_perf.timing.cuda_event import CudaEventTimer
from flashinfer_perf.timing.cuda_graph import CudaGraphTimer, NotCapturable
from flashinfer_perf.timing.cupti import CuptiTimer
from flashinfer_perf.timing.target import Target
from flashinfer_perf.timing.timer import Opened, Timer


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        cupti: CUPTI rather than events.
        graph: inside a CUDA graph.
        strict: fail rather than use another clock.
    """

    cupti: bool = True
    graph: bool = True
    strict: bool = False


def open_timer(machine: Machine, wish: Wish, target: Target, work_bytes: float) -> Opened:
    """The best clock that can time the target.

    Raises:
        Unsupported: when the wish is strict and the clock wished for cannot be used.
    """
    reasons: list[str] = []
    for make, obstacle in _candidates(machine, wish, target, work_bytes):
        if not obstacle:
            timer = make()
            try:
                timer.open(target)
                return Opened(timer, " ".join(reasons))
            except NotCapturable as error:
                timer.close()
                obstacle = str(error)
            except BaseException:
                timer.close()
                raise
        if wish.strict:
            raise Unsupported(f"--strict_timer: {obstacle.removesuffix(FALLING_BACK).strip().rstrip('.')}")
        reasons.append(obstacle)
    raise AssertionError("CUDA events can time everything")


def _candidates(
    machine: Machine, wish: Wish, target: Target, work_bytes: float
) -> Iterator[tuple[Callable[[], Timer], str]]:
    """Clocks from the one wished for down to the one that always works, each with what is known to speak against it."""
    if not machine.is_cuda:
        yield CpuTimer, ""
        return
    events = _why_events(target)
    if wish.cupti:
        missing = why_unavailable()
        obstacle = events or target.launch.no_cupti or (f"{missing} {FALLING_BACK}" if missing else "")
        if wish.graph and not obstacle:
            yield lambda: CuptiTimer(in_graph=True), ""
        yield lambda: CuptiTimer(in_graph=False), obstacle
    if wish.graph and not events:
        yield lambda: CudaGraphTimer(work_bytes), ""
    yield CudaEventTimer, ""


def _why_events(target: Target) -> str:
    """Why only CUDA events can time a target; '' when they need not."""
    if target.launch.phase_names:
        return "The phases of a call are timed by CUDA events."
    return "Calls of several ranks, which start together, are timed by CUDA events." if target.line_up else ""


FALLING_BACK = "Falling back to CUDA events."


def wish_of(options: Options) -> Wish:
    """From the command line."""
    return Wish(not options.use_cuda_events, not options.no_cuda_graph, options.strict_timer)


def choose_stop_rule(options: Options) -> StopRule:
    """--num_iters, or --target_precision in its place; either within --max_time."""
    precision, seconds = options.target_precision, options.max_time
    rule: StopRule = FixedNumber(options.num_iters) if precision is None else TargetPrecision(precision)
    return rule if seconds is None else TimeBudget(seconds, rule)
