"""The mathematics of the norm family in fp64, a few rows at a time; what 16 bits are compared with is kept in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import torch

ELEMENTS_AT_A_TIME = 1 << 22
"""In fp64 with its intermediate results: 200 MiB."""
LARGEST_FP4 = 6
GEMMA_BIAS = 1.0
"""What Gemma's norms add to the weight."""


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """sqrt(mean(x^2) + eps) over the last dimension, which is kept; fp64."""
    return (x.double().square().mean(dim=-1, keepdim=True) + eps).sqrt()


def normed(h: torch.Tensor, weight: torch.Tensor, eps: float, bias: float = 0.0) -> torch.Tensor:
    """h / rms(h) * (bias + weight), fp64."""
    return h.double() / rms(h, eps) * (bias + weight.double())


def by_rows(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """A function of rows, applied to slices of tensors (…, hidden) of one shape."""
    *rows, hidden = tensors[0].shape
    count = max(ELEMENTS_AT_A_TIME // hidden, 1)
    slices = zip(*(tensor.reshape(-1, hidden).split(count) for tensor in tensors), strict=True)
    return torch.cat([function(*parts) for parts in slices]).reshape(*rows, -1)


def total(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """x + residual, fp64."""
    return x.double() + residual.double()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float, bias: float = 0.0) -> Mapping[str, torch.Tensor]:
    """out = x / rms(x) * (bias + weight), fp32.

    Args:
        x: (…, hidden), 16 bits; each row of the last dimension is normalised.
        weight: (hidden,).
    """
    return {"out": by_rows(lambda part: normed(part, weight, eps, bias).float(), x)}


def rms_norm_quant(
    x: torch.Tensor, weight: torch.Tensor, *, eps: float, scale: float, dtype: DType
) -> Mapping[str, torch.Tensor]:
    """out = fp8(x / rms(x) * weight / scale), saturated, (batch, hidden) in ``dtype``."""
    return {"out": by_rows(partial(_quantised, weight=weight, eps=eps, scale=scale, dtype=dtype), x)}


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float, bias: float = 0.0
) -> Mapping[str, torch.Tensor]:
    """h = x + residual replaces the residual, h / rms(h) * (bias + weight) the input; both fp32.

    The norm takes the sum before it is rounded for the residual, as the kernels do.
    """
    return {
        "input": by_rows(lambda *parts: normed(total(*parts), weight, eps, bias).float(), x, residual),
        "residual": by_rows(lambda *parts: total(*parts).float(), x, residual),
    }


def add_rms_norm_quant(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float, scale: float, dtype: DType
) -> Mapping[str, torch.Tensor]:
    """h = x + residual; out = fp8(h / rms(h) * weight / scale), saturated; the updated residual is h.

    Args:
        x, residual: (batch, hidden), 16 bits.
        weight: (hidden,).
        scale: what the normalised values are divided by.
        dtype: of out, e4m3 or e5m2.

    Returns:
        out (batch, hidden) in ``dtype``, residual (batch, hidden) in fp32.
    """
    quantised = partial(_quantised, weight=weight, eps=eps, scale=scale, dtype=dtype)
    return {
        "out": by_rows(lambda *parts: quantised(total(*parts)), x, residual),
        "residual": by_rows(lambda *parts: total(*parts).float(), x, residual),
    }


def rms_norm_fp4(
    x: torch.Tensor, weight: torch.Tensor, global_scale: torch.Tensor, *, eps: float, block: int, scales: Sequence[str]
) -> Mapping[str, torch.Tensor]:
    """What an FP4 quantiser is to represent: x / rms(x) * weight, times the global scale.

    Args:
        block: elements that share a scale.
        scales: names of the outputs that hold the scales.

    Returns:
        y_fp4 (…, hidden) in fp32: what element times block scale should be; each of ``scales`` (…, hidden / block) in
        fp64: the block's largest magnitude divided by that of an element, before it is rounded.
    """
    values = by_rows(lambda part: (normed(part, weight, eps) * global_scale.double()).float(), x)
    return _fp4(values, block, scales)


def add_rms_norm_fp4(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    global_scale: torch.Tensor,
    *,
    eps: float,
    block: int,
    scales: Sequence[str],
) -> Mapping[str, torch.Tensor]:
    """The same of h = x + residual, which is the updated residual, in fp32."""
    scaled = by_rows(lambda *parts: (normed(total(*parts), weight, eps) * global_scale.double()).float(), x, residual)
    return {**_fp4(scaled, block, scales), "residual": by_rows(lambda *parts: total(*parts).float(), x, residual)}


def _fp4(values: torch.Tensor, block: int, scales: Sequence[str]) -> Mapping[str, torch.Tensor]:
    largest = values.unflatten(-1, (-1, block)).abs().amax(dim=-1).double()
    return {"y_fp4": values, **dict.fromkeys(scales, largest / LARGEST_FP4)}


def _quantised(h: torch.Tensor, *, weight: torch.Tensor, eps: float, scale: float, dtype: DType) -> torch.Tensor:
    return encode((normed(h, weight, eps) / scale).float(), dtype)
