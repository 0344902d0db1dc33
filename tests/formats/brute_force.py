"""Rounding by search: slow, obvious, and independent of the bit tricks that it checks."""

from __future__ import annotations

import torch


def all_16_bit(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit format, infinities and NaN included."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def nearest_even(values: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """The index of the nearest magnitude to each |value| (no NaN), of two equally near ones the even index.

    What is larger than all goes to the last.
    """
    size = values.double().abs().clamp(max=float(magnitudes[-1]))
    distance = (size[:, None] - magnitudes.double()).abs()
    nearest = distance == distance.amin(dim=1, keepdim=True)
    index = torch.arange(len(magnitudes))
    return torch.where(nearest, index + len(index) * (index % 2), 2 * len(index)).argmin(dim=1)
