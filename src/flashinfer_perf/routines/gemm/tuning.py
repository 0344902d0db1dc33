"""--autotune: FlashInfer's tuner chooses a kernel's tactics before it is timed, and forgets them afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Protocol

from flashinfer_perf.core.routine import Fact
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.run.launch import Launch

TUNING_FACTS = (
    Fact("tactic", "what FlashInfer's tuner chose: runner and tactic of each product; -1 is the runner's own default"),
    Fact("tuning_ms", "time that tuning took, with compiling and building plans, before the timed calls"),
)


@contextlib.contextmanager
def tuner() -> Iterator[None]:
    """What the library's tuner learned inside is forgotten afterwards.

    It remembers for the whole process: a later case without ``--autotune`` would run tuned, and say that it was not.
    """
    try:
        yield
    finally:
        if "flashinfer.autotuner" in sys.modules:
            flashinfer.autotuner.AutoTuner.get().clear_cache()


class Tunable(Protocol):
    """A family's flags."""

    @property
    def autotune(self) -> bool: ...


def tuned(case: Tunable, launch: Launch, backend: str = "", named: str = "") -> Launch:
    """The launch, after its tactics were measured if that is asked for; it says what will run.

    The tuner measures at the first call inside its context, for the sizes of this call alone. Outside, each call asks
    it again, and gets what was found, or runner and tactic by default; a call that is listened to tells which. Without
    tuning there is one only where the name stands for a choice.

    Args:
        launch: writes nothing but outputs, so that calls before the timed ones do no harm.
        backend: by FlashInfer's name.
        named: what the documents call the kernel; by default the function's name.
    """
    facts: dict[str, Any] = {}
    if case.autotune:
        began = perf_counter()
        with flashinfer.autotuner.autotune(True), _asked_by_way_of(_for_these_sizes):
            launch()
        _wait(launch)
        facts["tuning_ms"] = (perf_counter() - began) * 1e3
        launch = dataclasses.replace(launch, tuned=named or getattr(launch.fn, "__name__", ""))
    if not case.autotune and backend != "auto":
        return launch
    with _choices() as chosen:
        launch()
    if not chosen:  # a backend past the tuner
        return dataclasses.replace(launch, facts={**launch.facts, **facts})
    if case.autotune:
        facts["tactic"] = "; ".join(f"{runner} {tactic}" for runner, tactic in chosen)
    resolved = backend_of(chosen[-1][0]) if backend == "auto" else launch.resolved_backend
    return dataclasses.replace(launch, facts={**launch.facts, **facts}, resolved_backend=resolved)


RUNNERS = (
    "cublaslt",
    "cublas",
    "cudnn",
    "cutlass",
    "cutedsllowlatency",
    "cutedsl",
    "tgv",
    "tinygemm",
    "trtllm",
    "b12x",
)
NAMES = {"cutedsl": "cute-dsl", "cutedsllowlatency": "cutedsl_low_latency"}


def backend_of(runner: str) -> str:
    """'CublasFp8GemmRunner' -> 'cublas': the backend that a runner's class belongs to; of an unknown one the class."""
    found = next((name for name in RUNNERS if runner.lower().startswith(name)), runner)
    return NAMES.get(found, found)


def _for_these_sizes(
    choose_one: Callable[..., Any], custom_op: str, runners: Any, tuning_config: Any, inputs: list[Any], **kwargs: Any
) -> Any:
    """Asks the tuner to measure at the sizes of these inputs alone.

    Left alone it measures at every size that a configuration lists, which takes minutes for a large mixture of experts.
    What it finds is kept under a size rounded by ``map_to_tuning_buckets``, both when it was measured and when a call
    looks it up, so that a call of these very sizes finds it whatever else was measured.
    """
    return choose_one(custom_op, runners, _narrowed(tuning_config, inputs), inputs, **kwargs)


def _narrowed(tuning_config: Any, inputs: list[Any]) -> Any:
    """The library's ``TuningConfig`` with one size to measure at in each dynamic dimension: that of the inputs."""

    def at_one_size(spec: Any) -> Any:
        return dataclasses.replace(spec, gen_tuning_buckets=(inputs[spec.input_idx[0]].shape[spec.dim_idx[0]],))

    specs = tuple(at_one_size(spec) for spec in tuning_config.dynamic_tensor_specs)
    return dataclasses.replace(tuning_config, dynamic_tensor_specs=specs)


@contextlib.contextmanager
def _choices() -> Iterator[list[tuple[str, Any]]]:
    """The (runner, tactic) that the library's tuner chooses inside."""
    chosen: list[tuple[str, Any]] = []

    def listen(choose_one: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        runner, tactic = choose_one(*args, **kwargs)
        chosen.append((type(runner).__name__, tactic))
        return runner, tactic

    with _asked_by_way_of(listen):
        yield chosen


@contextlib.contextmanager
def _asked_by_way_of(between: Callable[..., Any]) -> Iterator[None]:
    """Inside, questions to the library's tuner go to ``between``: its own ``choose_one``, then that one's arguments."""
    library = flashinfer.autotuner.AutoTuner.get()
    library.choose_one = functools.partial(between, library.choose_one)
    try:
        yield
    finally:
        del library.choose_one


def _wait(launch: Launch) -> None:
    device = next(launch.written()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
