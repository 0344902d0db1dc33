"""Chooses the experts of every token, and their weights, by the methods that FlashInfer's kernels know."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.overlap import await_previous, options_on

METHODS = ("renormalize", "deepseek_v3", "llama4", "renormalize_naive", "topk")
NEVER = tl.constexpr(float("-inf"))
TINY = tl.constexpr(1e-20)
"""Added to a sum of sigmoids, as FlashInfer's own routing kernel does."""
WARPS = 1
"""Of a token. Its scores fit into one warp's registers; several would have to meet at every choice."""


@triton.jit
def _best_groups(score, size, TOPK_GROUP: tl.constexpr):
    """score (groups, experts of a group), with all but the best groups out of reach.

    A group is as good as its two best experts together.
    """
    expert, group = tl.arange(0, score.shape[1]), tl.arange(0, score.shape[0])
    first = tl.max(score, axis=1)
    at = tl.argmax(score, axis=1)
    second = tl.max(tl.where(expert[None, :] == at[:, None], NEVER, score), axis=1)
    merit = tl.where(size > 1, first + second, first)
    kept = tl.zeros_like(group)
    for _ in tl.static_range(TOPK_GROUP):
        best = tl.argmax(merit, axis=0)
        kept = tl.where(group == best, 1, kept)
        merit = tl.where(group == best, NEVER, merit)
    return tl.where(kept[:, None] != 0, score, NEVER)


@triton.jit
def _scores(logit, inside, METHOD: tl.constexpr):
    """What experts are chosen by, but for a bias, and what their weights are made of."""
    if METHOD == "deepseek_v3":
        value = tl.sigmoid(logit)
        score = tl.where(inside, value, NEVER)
    elif METHOD == "renormalize_naive":
        shares = tl.exp(logit - tl.max(logit))
        value = shares / tl.sum(shares)
        score = tl.where(inside, value, NEVER)
    else:
        value = tl.sigmoid(logit) if METHOD == "llama4" else logit
        score = logit
    return score, value


@triton.jit
def _weights(chosen, present, scaling, METHOD: tl.constexpr):
    if METHOD == "deepseek_v3":
        result = chosen * scaling / (tl.sum(tl.where(present, chosen, 0.0)) + TINY)
    elif METHOD == "renormalize_naive":
        result = chosen / tl.sum(tl.where(present, chosen, 0.0))
    elif METHOD == "renormalize":
        shares = tl.where(present, tl.exp(chosen - tl.max(tl.where(present, chosen, NEVER))), 0.0)
        result = shares / tl.sum(shares)
    else:
        result = chosen
    return result


@triton.jit
def _all(value):
    """The sum over groups and experts."""
    return tl.sum(tl.sum(value, axis=1), axis=0)


@triton.jit
def _first_of_best(score, index, experts):
    """The number of the first of the experts with the largest score; 0 if no score is a number: nor is its weight.

    Not by argmax over a flat view: Triton may reorder a reshape that only a reduction uses, and forgets the indices.
    """
    best = tl.max(tl.max(score, axis=1), axis=0)
    return tl.min(tl.min(tl.where(score == best, index, experts), axis=1), axis=0) % experts


@triton.jit
def route(
    logits, bias, topk_ids, topk_weights, experts, groups, scaling,
    METHOD: tl.constexpr, BIASED: tl.constexpr, TOP_K: tl.constexpr, TOPK_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A token a program, in fp32. Of experts with equal scores the first is chosen, and likewise of groups.

    Args:
        GROUPS, SIZE, WIDTH: powers of two, not less than the groups, their experts, and TOP_K.
        TOPK_GROUP: how many groups may be chosen from; 0 for all.
    """
    await_previous(OVERLAPS)
    token = tl.program_id(0).to(tl.int64)
    size = experts // groups
    group, within = tl.arange(0, GROUPS)[:, None], tl.arange(0, SIZE)[None, :]
    index = group * size + within
    inside = (group < groups) & (within < size)
    logit = tl.load(logits + token * experts + index, inside, NEVER).to(tl.float32)
    score, value = _scores(logit, inside, METHOD)
    if BIASED and METHOD == "deepseek_v3":
        score += tl.load(bias + index, inside, 0.0).to(tl.float32)
    if TOPK_GROUP > 0:
        score = _best_groups(score, size, TOPK_GROUP)
    rank = tl.arange(0, WIDTH)
    chosen, ids = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.int32)
    for k in tl.static_range(TOP_K):
        best = _first_of_best(score, index, experts)
        chosen = tl.where(rank == k, _all(tl.where(index == best, value, 0.0)), chosen)
        ids = tl.where(rank == k, best, ids)
        score = tl.where(index == best, NEVER, score)
    present = rank < TOP_K
    tl.store(topk_ids + token * TOP_K + rank, ids, present)
    tl.store(topk_weights + token * TOP_K + rank, _weights(chosen, present, scaling, METHOD), present)


class TritonRouting:
    """Plans the choice of top_k of num_experts by one method.

    renormalize: softmax of the chosen logits. renormalize_naive: softmax of all, chosen, divided by their sum. topk:
    logits as they are. llama4: their sigmoids. deepseek_v3: chosen by sigmoid plus bias, among the ``topk_group`` best
    of ``n_group`` groups of neighbours if these are given; weights are sigmoids without bias, divided by their sum,
    times ``routed_scaling_factor`` (1 unless given).

    Raises:
        ValueError: for options that no choice satisfies, and groups with another method than deepseek_v3.
    """

    def __init__(
        self,
        method: str,
        *,
        num_experts: int,
        top_k: int,
        n_group: int | None = None,
        topk_group: int | None = None,
        routed_scaling_factor: float | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: give one of {', '.join(METHODS)}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k is {top_k}: give 1 to {num_experts}, the number of experts")
        _check_groups(method, num_experts, top_k, n_group, topk_group)
        self.method, self.num_experts, self.top_k = method, num_experts, top_k
        self.n_group = n_group or 1
        self.topk_group = (topk_group or 1) if self.n_group > 1 else 0
        self.routed_scaling_factor = 1.0 if routed_scaling_factor is None else float(routed_scaling_factor)

    def __call__(
        self, logits: torch.Tensor, bias: torch.Tensor | None, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> None:
        """Writes the chosen experts in the order in which they are chosen.

        Args:
            logits: (T, num_experts) of floats.
            bias: (num_experts,) of floats; read by deepseek_v3 only, zeros unless given.
            topk_ids: (T, top_k) int32 out.
            topk_weights: (T, top_k) fp32 out.
        """
        tokens = len(logits)
        chosen = (tokens, self.top_k)
        _check("logits", logits, (tokens, self.num_experts), None)
        _check("topk_ids", topk_ids, chosen, torch.int32)
        _check("topk_weights", topk_weights, chosen, torch.float32)
        if bias is not None:
            _check("bias", bias, (self.num_experts,), None)
        if not tokens:
            return
        route[(tokens,)](
            logits, logits if bias is None else bias, topk_ids, topk_weights, self.num_experts, self.n_group,
            self.routed_scaling_factor,
            METHOD=self.method, BIASED=bias is not None, TOP_K=self.top_k, TOPK_GROUP=self.topk_group,
            GROUPS=triton.next_power_of_2(self.n_group),
            SIZE=triton.next_power_of_2(self.num_experts // self.n_group),
            WIDTH=triton.next_power_of_2(self.top_k), num_warps=WARPS, **options_on(logits.device),
        )  # fmt: skip


def _check_groups(method: str, num_experts: int, top_k: int, n_group: int | None, topk_group: int | None) -> None:
    if n_group is None and topk_group is None:
        return
    if method != "deepseek_v3":
        raise ValueError(f"n_group is {n_group} and topk_group {topk_group}: {method} has no groups, leave them out")
    groups, best = n_group or 1, topk_group or 1
    if groups < 1 or num_experts % groups:
        raise ValueError(f"n_group is {n_group}: give a divisor of {num_experts}, the number of experts")
    if not 1 <= best <= groups or best * (num_experts // groups) < top_k:
        raise ValueError(
            f"topk_group is {topk_group}: give at most {groups}, the number of groups, and as many as {top_k} experts "
            f"need of {num_experts // groups} each"
        )


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if tuple(tensor.shape) != shape or not fits or not tensor.is_contiguous():
        expected = f"{shape} of {dtype or 'floats'}, contiguous"
        raise ValueError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}: give {expected}")
