"""A mixture of experts by PyTorch: tokens grouped by expert, products in 16 bits of operands that are exact in them.

FP8 and FP4 elements times their block scales fit into bfloat16 without rounding; scales of whole matrices multiply the
product.
"""

from __future__ import annotations

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.router import Router

NO_GRAPH = "PyTorch's mixture asks the device which experts have tokens, which no CUDA graph can hold."
NVFP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def route(
    router: Router, logits: torch.Tensor, bias: torch.Tensor | None, experts: torch.Tensor, weights: torch.Tensor
) -> None:
    """Writes the experts (tokens, top_k) and their weights in fp32; among equal scores any is taken."""
    logits = logits.float()
    values = torch.sigmoid(logits) if router.method in ("deepseek_v3", "llama4") else logits
    scores = values + bias.float() if router.method == "deepseek_v3" and bias is not None else values
    if router.n_group > 1:
        scores = _best_groups(scores.unflatten(-1, (router.n_group, -1)), router.topk_group)
    chosen = scores.topk(router.top_k, dim=-1).indices
    shares = values.gather(-1, chosen)
    if router.method == "deepseek_v3":
        shares = router.scaling * shares / shares.sum(dim=-1, keepdim=True)
    elif router.method.startswith("renormalize"):
        shares = shares.softmax(dim=-1)
    experts.copy_(chosen)
    weights.copy_(shares)


def _best_groups(grouped: torch.Tensor, count: int) -> torch.Tensor:
    """Scores with -inf in all other groups."""
    of_groups = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
    best = of_groups.topk(count, dim=-1).indices
    kept = torch.full_like(of_groups, float("-inf")).scatter(1, best, 0.0)
    return (grouped + kept[..., None]).flatten(-2)


def mix(
    layer: Layer,
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    output: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    w1_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w1_global: torch.Tensor | None = None,
    w2_global: torch.Tensor | None = None,
) -> None:
    """Writes output (tokens, hidden) in its 16-bit format."""
    rows, factor = _operand(x, x_scale, output.dtype)
    total = torch.zeros(output.shape, dtype=torch.float32, device=output.device)
    order, counts = sorted_by_expert(experts, layer.experts)
    for index, pairs in enumerate(order.split(counts)):
        if not len(pairs):
            continue
        tokens, slots = pairs // experts.shape[1], pairs % experts.shape[1]
        first = _product(rows[tokens], *_matrix(w1, w1_scale, w1_global, index)) * factor
        scale = weights[tokens, slots, None]
        between = _activated(layer.activation, first * scale if layer.weights_on_input else first)
        second = _product(between.to(rows.dtype), *_matrix(w2, w2_scale, w2_global, index))
        total.index_add_(0, tokens, second if layer.weights_on_input else second * scale)
    output.copy_(total)


def sorted_by_expert(experts: torch.Tensor, here: range) -> tuple[torch.Tensor, list[int]]:
    """Which pairs of a token and one of its experts are of each expert that is here, and how many; waits for the device
    once.

    Args:
        experts: (tokens, top_k) global numbers.

    Returns:
        Numbers of pairs, token by token, expert after expert; and for each expert of ``here`` how many are its.
    """
    own = experts.flatten().long() - here.start
    own = torch.where((own >= 0) & (own < len(here)), own, len(here))
    counts = own.bincount(minlength=len(here) + 1)[: len(here)].tolist()
    return own.argsort(stable=True)[: sum(counts)], counts


def _operand(
    x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Rows in 16 bits and a factor on their products."""
    if x.dtype is not torch.float8_e4m3fn or scale is None:
        return x, 1.0
    if scale.ndim == 1:
        return x.to(dtype), scale
    return x.bfloat16() * scale.bfloat16().repeat_interleave(x.shape[1] // scale.shape[1], 1), 1.0


def _matrix(
    elements: torch.Tensor, scale: torch.Tensor | None, global_scale: torch.Tensor | None, index: int
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """An expert's matrix in 16 bits and a factor on its products."""
    matrix = elements[index]
    if scale is None:
        return matrix, 1.0
    if global_scale is not None:
        values = torch.tensor(NVFP4_VALUES, dtype=torch.bfloat16, device=matrix.device)
        codes = torch.stack((matrix & 0xF, matrix >> 4), dim=-1).flatten(-2)
        blocks = scale[index].view(torch.float8_e4m3fn).bfloat16()
        return values[codes.int()] * blocks.repeat_interleave(16, -1), 1 / global_scale[index]
    if scale.ndim == 1:
        return matrix.bfloat16(), scale[index]
    down, across = (matrix.shape[i] // scale.shape[i + 1] for i in (0, 1))
    spread = scale[index].bfloat16().repeat_interleave(down, 0).repeat_interleave(across, 1)
    return matrix.bfloat16() * spread, 1.0


def _product(rows: torch.Tensor, matrix: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """rows matrix^T * factor in fp32, from 16 bits."""
    return (rows.to(matrix.dtype) @ matrix.T).float() * factor


def _activated(name: str, values: torch.Tensor) -> torch.Tensor:
    """The activation of fp32 values, (rows, up then gate) or (rows, intermediate)."""
    functional = torch.nn.functional
    if name in ("Swiglu", "SwigluBias", "Geglu"):
        up, gate = values.chunk(2, dim=-1)
        return up * (functional.gelu(gate) if name == "Geglu" else functional.silu(gate))
    if name == "Relu2":
        return functional.relu(values).square()
    return values if name == "Identity" else getattr(functional, name.lower())(values)
