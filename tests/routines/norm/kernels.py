"""Kernels of the norm family for tests: PyTorch's own, right or with one thing wrong, and FlashInfer's on a CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from flashinfer_perf.run.launch import Launch
from tests.routines.harness import routine_named

Prepare = Callable[[Any, Any], Launch]


def wrong(name: str, *, before: Callable[..., Mapping[str, Any]] | None = None, after: Any = None) -> Prepare:
    """The routine's torch backend with other arguments (``before`` gives them) or spoilt outputs (by ``after``).

    Both are called with the case's flags and the arguments of the call by name.
    """

    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)

        def kernel(**arguments):
            launch.fn(**{**arguments, **(before(case, arguments) if before else {})})
            if after:
                after(case, arguments)

        return Launch(kernel, kwargs=launch.kwargs, mutates=launch.mutates)

    return prepare


def writes_nothing(name: str) -> Prepare:
    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)
        return Launch(lambda **arguments: None, kwargs=launch.kwargs, mutates=launch.mutates)

    return prepare


# ---- What can be wrong with one output ----


def zeros(output: str):
    return lambda case, arguments: arguments[output].view(torch.uint8).zero_()


def nan(output: str):
    """One element."""

    def spoil(case, arguments):
        arguments[output][-1, ..., -1] = float("nan")

    return spoil


def one_row_off(output: str):
    return lambda case, arguments: _replace(arguments[output], lambda values: values.roll(1, dims=0))


def one_column_off(output: str):
    return lambda case, arguments: _replace(arguments[output], lambda values: values.roll(1, dims=-1))


def last_row_missing(output: str):
    """As a kernel leaves it whose grid is too small."""

    def spoil(case, arguments):
        arguments[output].view(torch.uint8)[-1] = 0xFF

    return spoil


def _replace(output: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    raw = output.view(torch.int16 if output.element_size() == 2 else torch.uint8)
    raw.copy_(change(raw.clone()))


# ---- What can be wrong with an argument ----


def ignores_weight(case, arguments):
    return {"weight": torch.ones_like(arguments["weight"])}


def other_eps(case, arguments):
    """Seen only where eps is not small beside the mean square."""
    return {"eps": 0.0}


def changes_weight(case, arguments):
    arguments["weight"].view(torch.int16)[0] += 1


# ---- FlashInfer's own Python on a CPU ----


@contextlib.contextmanager
def flashinfer_without_gpu(kernel: Callable[..., None]) -> Iterator[list[str]]:
    """FlashInfer's norm functions run on CPU tensors as far as their kernels, in place of which ``kernel`` is called
    with the name of the implementation, that of the function and its arguments. Gives the implementations that ran.
    """
    import flashinfer

    ran: list[str] = []

    def stand_in(implementation, function):
        def call(*args, **kwargs):
            ran.append(implementation)
            kernel(function.removesuffix("_cute"), *args, **kwargs)

        return call

    names = [
        "rmsnorm",
        "rmsnorm_quant",
        "fused_add_rmsnorm",
        "fused_add_rmsnorm_quant",
        "gemma_rmsnorm",
        "gemma_fused_add_rmsnorm",
    ]
    cuda = SimpleNamespace(**{name: stand_in("cuda", name) for name in names})
    cute = ["rmsnorm_cute", "qk_rmsnorm_cute", "rmsnorm_quant_cute", "fused_add_rmsnorm_cute"]
    cute += ["fused_add_rmsnorm_quant_cute"]
    replaced = {name: stand_in("cute-dsl", name) for name in cute}
    replaced |= {"get_norm_module": lambda: cuda, "_use_cuda_norm": lambda device: flashinfer.norm._USE_CUDA_NORM}
    with mock.patch.multiple(flashinfer.norm, **replaced):
        yield ran


@contextlib.contextmanager
def blackwell(name: str, kernel: Callable[..., None]) -> Iterator[None]:
    """FlashInfer's FP4 norm believes to be on a B200: all its own Python runs, but for the compiled kernel, in place
    of which ``kernel`` is called with the tensors that that one gets and the layouts that it was compiled for.
    """
    import flashinfer

    module = sys.modules[getattr(flashinfer.norm, name).__module__]
    adds = name == "add_rmsnorm_fp4quant"
    names = ("x", "residual", "weight", "y", "scales", "unswizzled", "unused", "global_scale", "rows", "eps")
    if not adds:
        names = ("x", "weight", "y", "scales", "global_scale", "rows", "eps")

    def compiled(hidden_size, block_size, is_fp16, sm_version, scale_format, swizzled, *config):
        assert (block_size, scale_format) in ((16, "e4m3"), (32, "ue8m0"))
        both = config[1] if adds else False

        def call(*arguments):
            given = dict(zip(names, arguments, strict=True))
            assert given["x"].shape[-1] == hidden_size
            kernel(block_size=block_size, swizzled=swizzled or both, both=both, **given)

        return call

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(module, "_require_cute_dsl_arch_for"))
        stack.enter_context(mock.patch.object(module, "get_sm_version", return_value=100))
        stack.enter_context(mock.patch.object(module, "_get_compiled_kernel", compiled))
        if adds:
            tuning = module.AddRMSNormFP4QuantKernel
            stack.enter_context(mock.patch.object(tuning, "_compute_launch_config", return_value=(1, 32, 128)))
        yield
