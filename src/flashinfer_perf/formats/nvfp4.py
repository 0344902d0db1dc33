"""NVFP4: blocks of 16 E2M1 elements with an E4M3 scale each, and one fp32 scale for the whole tensor."""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import e2m1, fp8
from flashinfer_perf.lazy import torch

BLOCK = 16
SIXTH = 0.16666667163372040
"""1/6 in fp32, by which the kernels multiply where mathematics divides."""
LARGEST = e2m1.LARGEST * fp8.LARGEST[DType.FP8_E4M3]
"""What a tensor's largest magnitude times its global scale may be: 6 * 448."""
SMALLEST_NORMAL = 2.0**-126


class Nvfp4(NamedTuple):
    packed: torch.Tensor
    """(…, columns / 2) bytes, two elements each."""
    scales: torch.Tensor
    """(…, columns / 16) bytes, row by row."""


def encode(values: torch.Tensor, global_scale: torch.Tensor | float = 1.0, *, zero_lost: bool = False) -> Nvfp4:
    """Quantises (…, columns) of floats; columns must be a multiple of 16.

    A block's scale is the E4M3 number nearest to ``global_scale * amax / 6``; its elements are multiplied by
    ``global_scale / scale`` and rounded to nearest even. NaN is not seen by the maximum, and becomes +6.

    Args:
        global_scale: multiplies; conventionally 2688 / amax of the tensor. A tensor has one element.
        zero_lost: what becomes of a block whose scale rounds to zero. FlashInfer's quantisers divide by it all the
            same: ±6, and +6 where there was a zero. Its norm kernels write zeros, and so does this, when set.
    """
    scale = torch.as_tensor(global_scale, dtype=torch.float32, device=values.device)
    blocks = values.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(dim=-1)
    scales = fp8.encode(_flushed(scale * _flushed(largest * SIXTH)), DType.FP8_E4M3)
    factor = (scales.float() * _flushed(scale.reciprocal())).reciprocal()
    empty = (largest == 0) | (scales.float() == 0) if zero_lost else largest == 0
    codes = e2m1.encode(blocks * torch.where(empty, torch.zeros_like(factor), factor)[..., None])
    return Nvfp4(e2m1.pack(codes.flatten(-2)), scales.view(torch.uint8))


def decode(quantised: Nvfp4, global_scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """fp32 values, (…, columns): element times block scale, divided by the global scale."""
    elements = e2m1.decode(e2m1.unpack(quantised.packed)).unflatten(-1, (-1, BLOCK))
    scales = quantised.scales.view(torch.float8_e4m3fn).float()
    return (elements * scales[..., None]).flatten(-2) / global_scale


def _flushed(values: torch.Tensor) -> torch.Tensor:
    """Subnormal results are zero in the kernels' arithmetic; for values that are not negative."""
    return torch.where(values < SMALLEST_NORMAL, torch.zeros_like(values), values)
