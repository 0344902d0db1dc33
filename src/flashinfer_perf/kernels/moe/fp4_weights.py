"""NVFP4 experts as our kernels read them: brought into another order and other words once, before any call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flashinfer_perf.kernels.moe.fp4_order import inner_rows, laid_out, laid_out_scales
from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, Packing, scales_of, words_of
from flashinfer_perf.kernels.moe.weights import FP4_BLOCK, ExpertWeights

MAGNITUDE = 0x7F
"""Of a scale."""
SIGN = 0x80
SIGNS = 0x88
"""Of a byte's two elements."""


@dataclass(frozen=True)
class PreparedFp4(ExpertWeights):
    """Tensors of the same shapes and sizes, with other contents: see ``fp4_order`` and ``fp4_words``."""

    dtype: torch.dtype = field(kw_only=True)
    """Of the activations that the words are for: bfloat16 or float16."""

    def check_dtype(self, dtype: torch.dtype) -> None:
        if dtype != self.dtype:
            raise ValueError(
                f"dtype is {dtype} and the NVFP4 weights are prepared for {self.dtype}: "
                f"give the weights as they were before that, or prepared(weights, {dtype}) of them"
            )


def prepared(weights: ExpertWeights, dtype: torch.dtype) -> PreparedFp4:
    """A copy of NVFP4 weights for our kernels and activations of a dtype; those that are prepared are given back.

    One expert at a time, so that no temporary is larger than a few of an expert's matrices.

    Args:
        dtype: bfloat16 or float16.

    Raises:
        ValueError: for another dtype, and for weights that are prepared for the other one.
    """
    if isinstance(weights, PreparedFp4):
        weights.check_dtype(dtype)
        return weights
    if dtype not in PACKINGS:
        raise ValueError(f"dtype is {dtype}: give bfloat16 or float16, that of the activations")
    packing = PACKINGS[dtype]
    columns = weights.intermediate_size
    inner = inner_rows(columns, gated=weights.w1.shape[1] > columns)
    w1, w1_scale = _matrices(weights.w1, weights.w1_scale, inner, packing)
    w2, w2_scale = _matrices(weights.w2, weights.w2_scale, torch.arange(weights.hidden_size), packing)
    scales = w1_scale, w2_scale, weights.w1_global, weights.w2_global
    return PreparedFp4(weights.format, w1, w2, *scales, dtype=dtype)


def _matrices(
    packed: torch.Tensor, scale: torch.Tensor | None, rows: torch.Tensor, packing: Packing
) -> tuple[torch.Tensor, torch.Tensor]:
    """All experts' matrices and scales, of rows in that order."""
    assert scale is not None
    rows = rows.to(packed.device)
    bytes_ = scale.view(torch.uint8)
    elements, scales = torch.empty_like(packed), torch.empty_like(bytes_)
    for expert in range(len(packed)):
        own_scale = bytes_[expert][rows]
        elements[expert] = words_of(laid_out(_of_positive_scales(packed[expert][rows], own_scale)), packing)
        scales[expert] = laid_out_scales(scales_of(own_scale & MAGNITUDE))
    return elements, scales


def _of_positive_scales(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The bytes for scales without a sign, which the words have no room for; zeros where the scale is zero."""
    flipped = packed ^ _for_each_byte((scale & SIGN != 0).to(torch.uint8) * SIGNS)
    return flipped.masked_fill(_for_each_byte(scale & MAGNITUDE == 0), 0)


def _for_each_byte(of_block: torch.Tensor) -> torch.Tensor:
    return of_block.repeat_interleave(FP4_BLOCK // 2, dim=1)
