"""How logits become experts and weights: the routing methods, in fp64, by their definitions.

Formulas: DeepSeek-V3 (arXiv:2412.19437, section 2.1.2) with groups as in its published model; the others after
FlashInfer's ``RoutingMethodType``. Equal scores go to the expert of the lower number.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.flags import MoeFlags

BEST_OF_GROUP = 2
"""Experts whose scores add up to their group's."""


@dataclass(frozen=True)
class Router:
    """A routing method with its numbers.

    Attributes:
        n_group, topk_group: how many groups there are, and from how many a token chooses; 1 where there are none.
        scaling: factor on the weights.
    """

    method: str
    top_k: int
    n_group: int = 1
    topk_group: int = 1
    scaling: float = 1.0

    @classmethod
    def of(cls, case: MoeFlags) -> Router:
        """With the defaults of the method where flags were not typed."""
        if case.routing_method != "deepseek_v3":
            return cls(case.routing_method, case.top_k)
        n_group, topk_group = case.n_group or 1, case.topk_group or 1
        return cls(case.routing_method, case.top_k, n_group, topk_group, case.routed_scaling_factor)

    def scores(self, logits: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(tokens, experts) fp64: what experts are selected by. A softmax changes no order, so it is left out."""
        if self.method != "deepseek_v3":
            return logits.double()
        probabilities = torch.sigmoid(logits.double())
        return probabilities if bias is None else probabilities + bias.double()

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """(tokens, top_k) int64: the experts of each token, the best first."""
        if self.n_group > 1:
            grouped = scores.unflatten(-1, (self.n_group, -1))
            chosen = descending(group_scores(grouped))[:, : self.topk_group]
            outside = torch.ones(grouped.shape[:2], dtype=torch.bool, device=scores.device).scatter(1, chosen, False)
            scores = grouped.masked_fill(outside[..., None], float("-inf")).flatten(-2)
        return descending(scores)[:, : self.top_k]

    def weights(self, logits: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """(tokens, top_k) fp64: the weights of these experts."""
        chosen = logits.double().gather(-1, experts)
        if self.method == "topk":
            return chosen
        if self.method == "llama4":
            return torch.sigmoid(chosen)
        if self.method == "deepseek_v3":
            shares = torch.sigmoid(chosen)
            return self.scaling * shares / shares.sum(dim=-1, keepdim=True)
        return torch.softmax(chosen, dim=-1)


def group_scores(grouped: torch.Tensor) -> torch.Tensor:
    """(tokens, groups) of scores (tokens, groups, experts of a group)."""
    best = min(BEST_OF_GROUP, grouped.shape[-1])
    return grouped.topk(best, dim=-1).values.sum(dim=-1)


def descending(scores: torch.Tensor) -> torch.Tensor:
    """Positions along the last dimension, the largest score first; of equal ones the lower position."""
    return scores.sort(dim=-1, descending=True, stable=True).indices
