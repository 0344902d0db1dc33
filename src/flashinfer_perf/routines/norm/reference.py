"""The mathematics of the norm family, in fp32 and fp64."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import torch


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """sqrt(mean(x^2) + eps) over the last dimension, which is kept; fp64."""
    return (x.double().square().mean(dim=-1, keepdim=True) + eps).sqrt()


def add_rms_norm_quant(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float, scale: float, dtype: DType
) -> Mapping[str, torch.Tensor]:
    """h = x + residual; out = fp8(h / rms(h) * weight / scale); the updated residual is h.

    The norm takes the sum before it is rounded for the residual, as the kernels do.

    Args:
        x, residual: (batch, hidden), 16 bits.
        weight: (hidden,).
        scale: what the normalised values are divided by.
        dtype: of out, e4m3 or e5m2.

    Returns:
        out (batch, hidden) in ``dtype``, residual (batch, hidden) in fp64.
    """
    h = x.double() + residual.double()
    normed = h / rms(h, eps) * weight.double() / scale
    return {"out": encode(normed.float(), dtype), "residual": h}
