"""Our routing beside the same in fp64, expert by expert."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from flashinfer_perf.kernels.moe.routing import METHODS, TritonRouting

ROUNDING = 1e-5
"""Relative, of a weight: some 2^-20 of an exponential by fast functions, with arguments up to 4, a sum, a division."""


class Routed(NamedTuple):
    method: str
    experts: int
    top_k: int
    n_group: int | None = None
    topk_group: int | None = None
    scaling: float | None = None
    biased: bool = False
    tied: bool = False
    """Logits are of few values, so that most choices are between equals."""
    dtype: torch.dtype = torch.float32
    tokens: int = 5
    spoilt: bool = False
    """A logit is changed behind the kernel's back, which must show."""


def cases() -> dict[str, Routed]:
    found = {}
    for method in METHODS:
        for label, change in {
            "": {},
            " ties": {"tied": True},
            " bf16": {"dtype": torch.bfloat16},
            " one": {"top_k": 1},
        }.items():
            found[method + label] = Routed(method, 20, 6)._replace(**change)
    grouped = Routed("deepseek_v3", 24, 4, 4, 2, 2.5)
    return found | {
        "every expert": Routed("renormalize", 7, 7),
        "groups": grouped,
        "groups and a bias": grouped._replace(biased=True),
        "equal groups": grouped._replace(tied=True),
        "one group": grouped._replace(n_group=1, topk_group=1, biased=True),
        "groups of one": grouped._replace(n_group=24, topk_group=5),
        "no tokens": grouped._replace(tokens=0),
    }


def weight_of_no_number(method: str) -> float:
    """Of a token without a logit that is a number."""
    run = TritonRouting(method, num_experts=20, top_k=1)
    ids, weights = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1)
    run(torch.full((1, 20), math.nan), None, ids, weights)
    return float(weights)


def faults(case: Routed, device: str = "cpu") -> str:
    """What differs first, or nothing."""
    make = torch.Generator().manual_seed(case.experts)
    logits = torch.randn(case.tokens, case.experts, generator=make)
    logits = (logits.round() if case.tied else logits).to(case.dtype).to(device)
    bias = torch.randn(case.experts, generator=make).to(device) if case.biased else None
    groups = {"n_group": case.n_group, "topk_group": case.topk_group, "routed_scaling_factor": case.scaling}
    run = TritonRouting(case.method, num_experts=case.experts, top_k=case.top_k, **groups)
    ids = torch.full((case.tokens, case.top_k), -1, dtype=torch.int32, device=device)
    weights = torch.full((case.tokens, case.top_k), math.nan, device=device)
    run(-logits if case.spoilt else logits, bias, ids, weights)
    for token, row in enumerate(logits.double().tolist()):
        expected_ids, expected_weights = chosen(case, row, [0.0] * case.experts if bias is None else bias.tolist())
        if ids[token].tolist() != expected_ids:
            return f"experts of token {token} are {ids[token].tolist()}, not {expected_ids}"
        truth = torch.tensor(expected_weights, dtype=torch.float64)
        if not torch.allclose(weights[token].cpu().double(), truth, rtol=ROUNDING, atol=0):
            return f"weights of token {token} are {weights[token].tolist()}, not {expected_weights}"
    return ""


def chosen(case: Routed, row: list[float], bias: list[float]) -> tuple[list[int], list[float]]:
    """One token's experts and their weights."""
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in row]
    shares = [math.exp(logit) for logit in row]
    scores = [s + b for s, b in zip(sigmoid, bias, strict=True)] if case.method == "deepseek_v3" else row
    allowed = range(case.experts)
    if (case.n_group or 1) > 1:
        allowed = [expert for group in _best_groups(case, scores) for expert in group]
    ids = sorted(allowed, key=lambda expert: (-scores[expert], expert))[: case.top_k]
    values = {"topk": row, "llama4": sigmoid, "deepseek_v3": sigmoid}.get(case.method, shares)
    weights = [values[expert] for expert in ids]
    if case.method in ("topk", "llama4"):
        return ids, weights
    factor = (case.scaling or 1.0) if case.method == "deepseek_v3" else 1.0
    return ids, [factor * weight / sum(weights) for weight in weights]


def _best_groups(case: Routed, scores: list[float]) -> list[range]:
    size = case.experts // case.n_group
    groups = [range(first, first + size) for first in range(0, case.experts, size)]
    merit = lambda group: -sum(sorted((scores[expert] for expert in group), reverse=True)[:2])  # noqa: E731
    return sorted(groups, key=lambda group: (merit(group), group.start))[: case.topk_group]
