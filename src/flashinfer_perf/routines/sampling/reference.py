"""Exact distributions of the samplers, in fp64."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.lazy import torch


def top_k(probs: torch.Tensor, *, top_k: int) -> Mapping[str, torch.Tensor]:
    """The distribution of top-k sampling: tokens with fewer than k larger ones, in proportion to their probability.

    Ties at the k-th value all stay. fp32 input is exact in fp64, so no token is too close to the threshold to say.

    Returns:
        samples: (batch, vocab) probabilities, zero for tokens that cannot be drawn.
    """
    exact = probs.double()
    kth = exact.topk(min(top_k, exact.shape[-1]), dim=-1).values[:, -1:]
    kept = torch.where(exact >= kth, exact, torch.zeros_like(exact))
    return {"samples": kept / kept.sum(dim=-1, keepdim=True)}
