"""MXFP8: blocks of 32 E4M3 elements with an E8M0 scale (OCP Microscaling Formats 1.0).

What lies outside finite numbers follows FlashInfer 0.7.2, ``cvt_warp_fp16_to_mxfp8`` in ``quantization_utils.cuh``:
elements are clamped to ±448 by fminf and fmaxf, which make +448 of NaN (before 0.6.18 it stayed NaN).
"""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import e8m0, fp8
from flashinfer_perf.lazy import torch

BLOCK = 32
LARGEST = 448.0
RECIPROCAL = 0.0022321429569274187
"""1 / 448 in fp32, by which the kernels multiply where mathematics divides."""
SMALLEST_NORMAL = 2.0**-126


class Mxfp8(NamedTuple):
    elements: torch.Tensor
    """(…, columns) in float8_e4m3fn."""
    scales: torch.Tensor
    """(…, columns / 32) bytes, row by row."""


def encode(values: torch.Tensor, alignment: int = BLOCK) -> Mxfp8:
    """Quantises (…, columns) of 16-bit floats; columns must be a multiple of 32.

    The scale is the smallest power of two that brings the block's largest element to 448 or below; elements are then
    rounded to nearest even. NaN is not seen by the maximum, and becomes +448. A block with an infinity gets the
    largest scale, the reciprocal of which is flushed to zero: 0 for its numbers, +448 for infinities of either sign.

    Args:
        alignment: columns are padded to a multiple of this, itself one of 32, with zeros under scales of byte 0.
    """
    columns = values.shape[-1]
    if alignment % BLOCK or columns % BLOCK:
        raise ValueError(f"columns ({columns}) and alignment ({alignment}) must be multiples of {BLOCK}")
    padded = torch.nn.functional.pad(values.float(), (0, -columns % alignment))
    blocks = padded.unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(dim=-1)
    wanted = largest * RECIPROCAL
    scales = e8m0.encode_up(torch.where(wanted < SMALLEST_NORMAL, torch.zeros_like(wanted), wanted))
    scaled = blocks * e8m0.reciprocal(scales)[..., None]
    elements = fp8.encode(scaled.nan_to_num(nan=LARGEST), DType.FP8_E4M3)
    return Mxfp8(elements.flatten(-2), scales)


def decode(quantised: Mxfp8) -> torch.Tensor:
    """fp32 values, (…, columns)."""
    elements = quantised.elements.float().unflatten(-1, (-1, BLOCK))
    return (elements * e8m0.decode(quantised.scales)[..., None]).flatten(-2)
