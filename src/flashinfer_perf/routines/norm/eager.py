"""Norms in PyTorch operations, one after the other: in fp32, rounded once at the end, into outputs that are there."""

from __future__ import annotations

from flashinfer_perf.lazy import torch


def normed(h: torch.Tensor, weight: torch.Tensor, eps: float, bias: float = 0.0) -> torch.Tensor:
    """h / rms(h) * (bias + weight) of (…, hidden), fp32."""
    h = h.float()
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * (bias + weight.float())


def rmsnorm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, eps: float, bias: float = 0.0) -> None:
    """out = norm(input) * (bias + weight); all (…, hidden), weight (hidden,)."""
    out.copy_(normed(input, weight, eps, bias))


def fused_add_rmsnorm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, bias: float = 0.0
) -> None:
    """In place, both (batch, hidden): residual += input; input = norm(residual) * (bias + weight)."""
    h = input.float() + residual.float()
    residual.copy_(h)
    input.copy_(normed(h, weight, eps, bias))
