"""Before values are compared: is it the right kind of tensor at all?"""

from __future__ import annotations

from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch


def wrong_shape(name: str, output: torch.Tensor, truth: torch.Tensor) -> Finding | None:
    """A failed finding when the shapes differ."""
    if output.shape == truth.shape:
        return None
    return Finding(
        output=name,
        passed=False,
        detail=f"shape {tuple(output.shape)} instead of {tuple(truth.shape)}",
        elements=truth.numel(),
        differing=truth.numel(),
    )
