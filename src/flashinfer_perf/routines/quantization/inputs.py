"""Inputs of the quantisation family, and the lines that show them."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.quantization.encoding import Encoding
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Shown

SMALLEST_GLOBAL_SCALE, LARGEST_GLOBAL_SCALE = 2.0**-100, 2.0**100
"""Between them neither the global scale, nor its reciprocal, nor a product of either with normal data leaves fp32."""

GLOBAL_SCALE_IN_RANGE = Rule(
    lambda case: SMALLEST_GLOBAL_SCALE <= case.global_scale <= LARGEST_GLOBAL_SCALE,
    "global_scale ({global_scale}) must be between 2^-100 and 2^100: kernels take its reciprocal in fp32",
)


def matrix(case: QuantizationFlags, make: TensorFactory, encoding: Encoding) -> torch.Tensor:
    """What is quantised, standard normal. Room for the outputs is accounted for, too."""
    encoding.reserve(make)
    return make.normal("x", encoding.shape, case.input_dtype)


def global_scale(case: QuantizationFlags, make: TensorFactory) -> torch.Tensor:
    """(1,) fp32."""
    make.reserve("global_scale", (1,), DType.FLOAT32)
    return torch.full((1,), case.global_scale, device=make.device)


def shown(x: torch.Tensor, **settings: object) -> tuple[Shown, ...]:
    """Shape and format of the input, then how it is quantised."""
    lines = (Shown("input_tensor.shape", x.shape), Shown("input_tensor.dtype", x.dtype))
    return (*lines, *(Shown(label, value) for label, value in settings.items()))
