"""The router's inputs, its truth, and which experts are busy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.routed import Choice, Mixed
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.routine import Fact
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe import hidden, skew
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.layer import Layer, mixture
from flashinfer_perf.routines.moe.router import Router, group_scores
from flashinfer_perf.routines.moe.weights import Format
from flashinfer_perf.run.factory import TensorFactory

BIAS = 0.05
"""Standard deviation of the bias: enough to change which experts are selected."""
MIDDLE = (0.25, 0.75)
"""Scores: on both sides there is room for a bias of nearly five deviations, before probabilities leave ``POSSIBLE``."""
POSSIBLE = (0.01, 0.99)
"""Probabilities with logits that are no larger than a few units."""
FACTS = (
    Fact("active_experts", "experts that any token goes to, over all ranks"),
    Fact("busiest_expert_share", "share of all choices that fell on the most popular expert"),
    Fact("local_active_experts", "experts here that any token goes to"),
    Fact("local_flops", "operations of the experts here: tokens that go elsewhere are not counted, nor is the gate "
         "of an activation that has none"),
    Fact("local_bytes", "bytes that the experts here have to move, with block scales, weights of active ones once"),
)  # fmt: skip


def logits_dtype(case: MoeFlags) -> DType:
    """What the library's kernels have read since they exist, though newer ones take either."""
    return DType.FLOAT32 if case.routing_method == "deepseek_v3" else DType.BFLOAT16


def routing_inputs(case: MoeFlags, make: TensorFactory, router: Router) -> dict[str, torch.Tensor]:
    """``routing_logits`` (tokens, experts) and, where the method or a flag wants it, ``routing_bias`` (experts,)."""
    dtype = logits_dtype(case)
    drawn = skew.skewed_logits(make, case.routing_skew, case.num_tokens, case.num_experts, case.top_k)
    tensors = {"routing_logits": drawn.to(dtype.torch)}
    if case.use_routing_bias:
        noise = torch.randn(case.num_experts, generator=make.generator("routing_bias"))
        tensors["routing_bias"] = bias = (BIAS * noise).bfloat16()
        if case.routing_method == "deepseek_v3":
            tensors["routing_logits"] = balanced(drawn, bias)
    elif case.routing_method == "deepseek_v3":
        tensors["routing_bias"] = torch.zeros(case.num_experts, dtype=torch.bfloat16)
    if case.routing_skew.startswith(skew.FILE):
        _refuse_unreachable(router, tensors, drawn.topk(case.top_k).indices)
    return {name: tensor.to(make.device) for name, tensor in tensors.items()}


def balanced(wanted: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Logits with which DeepSeek-V3's scores, sigmoid(logit) + bias, are ordered as the wanted ones are, fp32.

    A trained router's bias makes up for the experts' popularity, so that loads are even. Independent of the logits it
    would unbalance them: with a deviation of 0.1 a fifth of 256 experts would have no token, and one a quarter of all.
    """
    low, high = MIDDLE
    scores = low + (high - low) * torch.sigmoid(wanted.double())
    return torch.logit((scores - bias.double()).clamp(*POSSIBLE)).float()


def _refuse_unreachable(router: Router, tensors: Mapping[str, torch.Tensor], wanted: torch.Tensor) -> None:
    found = router.select(router.scores(tensors["routing_logits"], tensors.get("routing_bias")))
    differing = (found.sort(dim=-1).values != wanted.sort(dim=-1).values).any(dim=-1)
    if differing.any():
        experts = wanted[int(differing.nonzero()[0])].tolist()
        raise InvalidInput(
            f"--routing_skew: the experts {' '.join(map(str, experts))} cannot be chosen together: they lie in more "
            f"than {router.topk_group} (--topk_group) of the {router.n_group} groups; name experts of fewer groups, or "
            "raise --topk_group"
        )


def choice_of(router: Router, logits: torch.Tensor, bias: torch.Tensor | None) -> Choice:
    """The experts with the largest scores."""
    scores = router.scores(logits, bias)
    groups = group_scores(scores.unflatten(-1, (router.n_group, -1)))
    return Choice(router.select(scores), scores, groups, router.topk_group, tolerance.ROUTING_SLACK)


def truth(
    *,
    router: Router,
    layer: Layer,
    weights: Format,
    routing_logits: torch.Tensor,
    routing_bias: torch.Tensor | None = None,
    **tensors: torch.Tensor,
) -> dict[str, Any]:
    """Which experts, and their mixture over the dequantised weights."""
    choice = choice_of(router, routing_logits, routing_bias)
    x, expert = hidden.decoded(tensors), weights.expert(tensors)

    def with_experts(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        return mixture(layer, x[rows], experts, router.weights(routing_logits[rows], experts), expert)

    everyone = torch.arange(len(x), device=x.device)
    mixed = Mixed(with_experts(everyone, choice.experts), choice, with_experts)
    return {"routing_replay_out": choice, "output": mixed}


def load(layer: Layer, chosen: torch.Tensor, experts: int) -> dict[str, Any]:
    """The facts about (tokens, top_k) numbers of experts."""
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    here = counts[layer.experts.start : layer.experts.stop]
    return {
        "active_experts": int((counts > 0).sum()),
        "busiest_expert_share": float(counts.max()) / chosen.numel(),
        "local_active_experts": int((here > 0).sum()),
    }
