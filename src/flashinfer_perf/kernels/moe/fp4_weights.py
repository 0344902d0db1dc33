"""NVFP4 experts as our kernels read them: brought into another order and other words once, before any call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashinfer_perf.kernels.moe.fp4_order import inner_rows, laid_out, laid_out_scales
from flashinfer_perf.kernels.moe.fp4_words import scales_of, words_of
from flashinfer_perf.kernels.moe.weights import FP4_BLOCK, ExpertWeights

MAGNITUDE = 0x7F
"""Of a scale."""


@dataclass(frozen=True)
class PreparedFp4(ExpertWeights):
    """Tensors of the same shapes and sizes, with other contents: see ``fp4_order`` and ``fp4_words``."""


def prepared(weights: ExpertWeights) -> PreparedFp4:
    """A copy of NVFP4 weights for our kernels; those that are prepared are given back.

    One expert at a time, so that no temporary is larger than a few of an expert's matrices.
    """
    if isinstance(weights, PreparedFp4):
        return weights
    columns = weights.intermediate_size
    inner = inner_rows(columns, gated=weights.w1.shape[1] > columns)
    w1, w1_scale = _matrices(weights.w1, weights.w1_scale, inner)
    w2, w2_scale = _matrices(weights.w2, weights.w2_scale, torch.arange(weights.hidden_size))
    return PreparedFp4(weights.format, w1, w2, w1_scale, w2_scale, weights.w1_global, weights.w2_global)


def _matrices(
    packed: torch.Tensor, scale: torch.Tensor | None, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All experts' matrices and scales, of rows in that order."""
    assert scale is not None
    rows = rows.to(packed.device)
    bytes_ = scale.view(torch.uint8)
    elements, scales = torch.empty_like(packed), torch.empty_like(bytes_)
    for expert in range(len(packed)):
        own, own_scale = packed[expert][rows], bytes_[expert][rows]
        zero = (own_scale & MAGNITUDE == 0).repeat_interleave(FP4_BLOCK // 2, dim=1)
        elements[expert] = words_of(laid_out(own.masked_fill(zero, 0)))
        scales[expert] = laid_out_scales(scales_of(own_scale))
    return elements, scales
