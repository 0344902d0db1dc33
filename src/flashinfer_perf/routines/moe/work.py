"""FLOPs and bytes of the MoE family: by the documented formulas, and of what is really done here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.layer import Layer

BYTES = {"fp8": 1.0, "nvfp4": 0.5 + 1 / 16}
"""Of an element by the documents: block scales are counted in NVFP4, and not in FP8. Others have their own size."""


def documented(case: MoeFlags, stored: str, logits_bytes: float, active_experts: int) -> Work:
    """Both formulas know no ranks, no activation without a gate, and count all experts that are active anywhere.

    Args:
        stored: format of hidden states and weights: fp8, nvfp4, or another for 16 bits.
    """
    tokens, hidden, intermediate = case.num_tokens, case.hidden_size, case.intermediate_size
    size = BYTES.get(stored, case.input_dtype.bytes)
    moved = tokens * hidden * (size + case.input_dtype.bytes) + tokens * case.num_experts * logits_bytes
    weights = active_experts * 3 * hidden * intermediate * size
    return Work(flops=tokens * case.top_k * 6 * hidden * intermediate, bytes=moved + weights)


def local(
    case: MoeFlags, layer: Layer, chosen: torch.Tensor, tensors: Mapping[str, torch.Tensor], active_experts: int
) -> dict[str, Any]:
    """The facts about what the experts here do.

    Args:
        chosen: (tokens, top_k) numbers of experts.
        tensors: of the problem. Hidden states that are there in NVFP4, too, are read in that.
        active_experts: how many are here.
    """
    rows = int(((chosen >= layer.experts.start) & (chosen < layer.experts.stop)).sum())
    _, columns, intermediate = tensors["w2"].shape
    packed = 2 if tensors["w2"].dtype is torch.uint8 else 1
    products = (3 if layer.gated else 2) * columns * intermediate * packed
    sizes = {name: tensor.nbytes for name, tensor in tensors.items() if name != "x" or "x_packed" not in tensors}
    weights = sum(size for name, size in sizes.items() if name.startswith(("w1", "w2")))
    others = sum(sizes.values()) - weights
    output = case.num_tokens * case.hidden_size * case.input_dtype.bytes
    return {
        "local_flops": 2 * rows * products,
        "local_bytes": int(weights / len(layer.experts) * active_experts + others + output),
    }
