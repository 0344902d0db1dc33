"""What a mixture of experts is: fp32 mathematics over dequantised weights, one expert at a time."""

from __future__ import annotations

from collections.abc import Callable

from flashinfer_perf.formats import nvfp4
from flashinfer_perf.formats.nvfp4 import Nvfp4
from flashinfer_perf.lazy import torch

Weight = Callable[[int], "torch.Tensor"]
"""An expert's weight in fp32, by the expert's number."""


def truth(
    x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, first: Weight, second: Weight
) -> dict[str, torch.Tensor]:
    """``out`` (m, k) fp32: for each token the sum over its experts of weight * W2 (silu(gate) * up), where the first n
    rows of W1 give up, the others gate. Activations are not rounded: what a kernel quantises them to is its error.
    """
    out = torch.zeros(x.shape, device=x.device)
    for expert in topk_ids.unique().tolist():
        token, place = (topk_ids == expert).nonzero(as_tuple=True)
        up, gate = (x[token].float() @ first(expert).T).chunk(2, dim=-1)
        given = (gate * torch.sigmoid(gate) * up) @ second(expert).T
        out.index_add_(0, token, given * topk_weights[token, place, None])
    return {"out": out}


def fp8_weights(elements: torch.Tensor, scale: torch.Tensor) -> Weight:
    """Of (experts, rows, columns) e4m3 with a scale for each expert, or for each of its rows."""
    return lambda expert: elements[expert].float() * scale[expert, ..., None]


def nvfp4_weights(packed: torch.Tensor, scale: torch.Tensor, overall: torch.Tensor) -> Weight:
    """Of (experts, rows, columns / 2) bytes with block scales in e4m3, row by row, and an fp32 divisor each."""
    return lambda expert: nvfp4.decode(Nvfp4(packed[expert], scale[expert]), overall[expert])
