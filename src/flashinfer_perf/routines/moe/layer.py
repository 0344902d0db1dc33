"""What a fused mixture of experts computes, and its truth in fp32, an expert at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.flags import GATED

Expert = Callable[[int], "tuple[torch.Tensor, torch.Tensor]"]
"""The i-th of the experts that are here: both of its weights in fp32, (n, hidden) and (hidden, intermediate)."""


@dataclass(frozen=True)
class Layer:
    """
    Attributes:
        activation: by name; of the first product's rows the first half is up, the second gate, where it is gated.
        experts: numbers of the experts that are here; what others would contribute is left out.
        weights_on_input: routing weights multiply the first product, not the second.
    """

    activation: str
    experts: range
    weights_on_input: bool = False

    @property
    def gated(self) -> bool:
        return self.activation in GATED


def mixture(
    layer: Layer, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, expert: Expert
) -> torch.Tensor:
    """(tokens, hidden) fp32: the sum over a token's experts of weight * W2 activation(W1 x).

    Args:
        x: (tokens, hidden) fp32.
        experts: (tokens, top_k) int64 numbers over all ranks.
        weights: (tokens, top_k) of any float format.
    """
    out = torch.zeros_like(x)
    for index, number in enumerate(layer.experts):
        tokens, slots = (experts == number).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        w1, w2 = expert(index)
        scale = weights[tokens, slots].float()[:, None]
        first = x[tokens] @ w1.T
        between = activate(layer.activation, first * scale if layer.weights_on_input else first)
        second = between @ w2.T
        out.index_add_(0, tokens, second if layer.weights_on_input else second * scale)
    return out


def activate(name: str, values: torch.Tensor) -> torch.Tensor:
    """(rows, intermediate) of (rows, 2 * intermediate), up then gate, or of (rows, intermediate).

    SwigluBias has the library's defaults: a factor of 1 in the sigmoid, no bias and no limit, which make it Swiglu.
    """
    if name in GATED:
        up, gate = values.chunk(2, dim=-1)
        return up * _GATES[name](gate)
    return _PLAIN[name](values)


def _silu(values: torch.Tensor) -> torch.Tensor:
    return values * torch.sigmoid(values)


def _gelu(values: torch.Tensor) -> torch.Tensor:
    """By the normal distribution itself, not its approximation by tanh."""
    return values * torch.special.ndtr(values)


_GATES = {"Swiglu": _silu, "SwigluBias": _silu, "Geglu": _gelu}
_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Gelu": _gelu,
    "Silu": _silu,
    "Relu": lambda values: values.clamp(min=0),
    "Relu2": lambda values: values.clamp(min=0).square(),
    "Identity": lambda values: values,
}
