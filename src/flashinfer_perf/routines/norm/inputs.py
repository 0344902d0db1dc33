"""Inputs of the norm family, and the lines that show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import nvfp4
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Shown


def tensors(case: NormFlags, make: TensorFactory, *, residual: bool = False) -> dict[str, torch.Tensor]:
    """x, residual if asked for, and weight, all standard normal; x is (batch, hidden) or (batch, heads, hidden)."""
    shape = tuple(size for size in (case.batch_size, case.num_heads, case.hidden_size) if size is not None)
    made = {"x": make.normal("x", shape, case.input_dtype)}
    if residual:
        made["residual"] = make.normal("residual", shape, case.input_dtype)
    return {**made, "weight": make.normal("weight", (case.hidden_size,), case.input_dtype)}


def global_scale(case: NormFlags, make: TensorFactory, normed: Callable[[], torch.Tensor]) -> torch.Tensor:
    """(1,) fp32: 2688 over the largest magnitude of what is quantised, as a calibrated model has it; without
    ``--use_global_scale`` 1. It is always given: the library would fill a tensor of ones in every call.
    """
    make.reserve("global_scale", (1,), DType.FLOAT32)
    if not case.use_global_scale:
        return torch.ones(1, device=make.device)
    return (nvfp4.LARGEST / normed().abs().amax()).float().reshape(1)


def shown(case: NormFlags, made: Mapping[str, torch.Tensor]) -> tuple[Shown, ...]:
    """Shapes and format."""
    residual = (Shown("residual_tensor.shape", made["residual"].shape),) if "residual" in made else ()
    return (
        Shown("input_tensor.shape", made["x"].shape),
        Shown("input_tensor.dtype", made["x"].dtype),
        *residual,
        Shown("weight.shape", made["weight"].shape),
    )


def shown_fp8(case: NormFlags, made: Mapping[str, torch.Tensor]) -> tuple[Shown, ...]:
    """The same and how the output is quantised."""
    return (*shown(case, made), Shown("out_tensor.dtype", case.out_dtype.torch), Shown("scale", case.scale))
