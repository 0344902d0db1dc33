"""MXFP4: blocks of 32 E2M1 elements with an E8M0 scale (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.formats import e2m1, e8m0
from flashinfer_perf.lazy import torch

BLOCK = 32
SIXTH = 0.16666667163372040
"""1/6 in fp32, by which the kernels multiply where mathematics divides."""
SMALLEST_NORMAL = 2.0**-126


class Mxfp4(NamedTuple):
    packed: torch.Tensor
    """(rows, columns / 2) bytes, two elements each."""
    scales: torch.Tensor
    """(rows, columns / 32) bytes, row by row."""


def encode(values: torch.Tensor) -> Mxfp4:
    """Quantises (rows, columns) of 16-bit floats; columns must be a multiple of 32.

    The scale is the smallest power of two that brings the block's largest element to 6 or below; elements are then
    rounded to nearest even. NaN is not seen by the maximum, and becomes +6.
    """
    blocks = values.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(dim=-1)
    wanted = largest * SIXTH
    scales = e8m0.encode_up(torch.where(wanted < SMALLEST_NORMAL, torch.zeros_like(wanted), wanted))
    codes = e2m1.encode(blocks * e8m0.reciprocal(scales)[..., None])
    return Mxfp4(e2m1.pack(codes.flatten(-2)), scales)


def decode(quantised: Mxfp4) -> torch.Tensor:
    """fp32 values, (rows, columns)."""
    elements = e2m1.decode(e2m1.unpack(quantised.packed)).unflatten(-1, (-1, BLOCK))
    return (elements * e8m0.decode(quantised.scales)[..., None]).flatten(-2)
