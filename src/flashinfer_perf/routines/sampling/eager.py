"""Samplers and filters in PyTorch operations, one after the other.

A token is drawn as the largest of probability / Exp(1): the minimum of independent exponential times with rates p
comes from i with probability p_i. Nothing is copied to the host, which torch.multinomial does to look at its input.
"""

from __future__ import annotations

from typing import Any

from flashinfer_perf.lazy import torch

NO_GRAPH = "The call seeds a generator of PyTorch's, which a CUDA graph cannot hold."
SPREAD = 6364136223846793005
"""An odd number with bits all over: seeds with offsets next to each other are far from each other."""


def drawn(weights: torch.Tensor, seed: int, offset: int, generator: torch.Generator) -> torch.Tensor:
    """(rows,) int32: an entry of each row of (rows, n) weights, with the probability that its share is."""
    return fastest(weights, seeded(generator, seed, offset))


def seeded(generator: torch.Generator, seed: int, offset: int) -> torch.Generator:
    """The generator, at the start of a sequence of its own."""
    return generator.manual_seed((seed * SPREAD + offset) % 2**63)


def fastest(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(rows,) int32: which of exponential times with rates (rows, n) is the shortest."""
    times = torch.empty_like(weights).exponential_(generator=generator)
    return (weights / times).argmax(dim=-1).to(torch.int32)


def keep_top_k(values: torch.Tensor, k: int, instead: float = 0.0) -> torch.Tensor:
    """Entries of (rows, n) that are less than the k-th largest of their row are replaced; equal ones stay."""
    kth = values.topk(k, dim=-1).values[:, -1:]
    return torch.where(values >= kth, values, instead)


def keep_top_p(probs: torch.Tensor, p: float, of: torch.Tensor | None = None) -> torch.Tensor:
    """Entries of (rows, n) with p or more in greater ones are set to zero; equal ones stay or go together.

    Args:
        of: probabilities that the mass is counted in, when they are others.
    """
    counted = probs if of is None else of
    values = counted.sort(dim=-1, descending=True).values
    kept = values.cumsum(dim=-1) - values < p
    last = kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return torch.where(counted >= values.gather(-1, last), probs, 0.0)


def normalised(weights: torch.Tensor) -> torch.Tensor:
    """Rows divided by their sums."""
    return weights / weights.sum(dim=-1, keepdim=True)


def softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(batch, vocab) fp32 probabilities of logits in any format."""
    return (logits.float() / temperature).softmax(dim=-1)


def sample(probs: torch.Tensor, **draw: Any) -> torch.Tensor:
    """A token of each row of (batch, vocab) probabilities; ``draw`` is seed, offset and generator, here and below."""
    return drawn(probs, **draw)


def sample_from_logits(logits: torch.Tensor, **draw: Any) -> torch.Tensor:
    """The same of (batch, vocab) logits."""
    return drawn(logits.float().softmax(dim=-1), **draw)


def sample_top_k(probs: torch.Tensor, top_k: int, **draw: Any) -> torch.Tensor:
    """From among the k most probable."""
    return drawn(keep_top_k(probs, top_k), **draw)


def sample_top_p(probs: torch.Tensor, top_p: float, **draw: Any) -> torch.Tensor:
    """From among the most probable up to a mass."""
    return drawn(keep_top_p(probs, top_p), **draw)


def sample_min_p(probs: torch.Tensor, min_p: float, **draw: Any) -> torch.Tensor:
    """From among those at least as probable as a share of the most probable."""
    return drawn(torch.where(probs >= min_p * probs.amax(dim=-1, keepdim=True), probs, 0.0), **draw)


def sample_top_k_top_p(
    probs: torch.Tensor, top_k: int, top_p: float, filter_apply_order: str, **draw: Any
) -> torch.Tensor:
    """Both filters of the same probabilities, or top-p of what top-k has left, normalised again."""
    of_k = keep_top_k(probs, top_k)
    if filter_apply_order == "top_k_first":
        return drawn(keep_top_p(normalised(of_k), top_p), **draw)
    return drawn(keep_top_p(of_k, top_p, of=probs), **draw)


def sample_top_k_top_p_from_logits(
    logits: torch.Tensor, top_k: int, top_p: float, filter_apply_order: str, **draw: Any
) -> torch.Tensor:
    """The same of (batch, vocab) logits, whose softmax is taken in fp32."""
    return sample_top_k_top_p(logits.float().softmax(dim=-1), top_k, top_p, filter_apply_order, **draw)


def renormalise_top_k(probs: torch.Tensor, top_k: int) -> torch.Tensor:
    """(batch, vocab) in the input's format: the k most probable divided by their sum, in fp32; zero for the others."""
    return normalised(keep_top_k(probs, top_k).float()).to(probs.dtype)


def renormalise_top_p(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """(batch, vocab) fp32: the most probable up to a mass, divided by their sum; zero for the others."""
    return normalised(keep_top_p(probs, top_p))


def mask_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """(batch, vocab) in the input's format: the k largest as they are, -inf for the others."""
    return keep_top_k(logits, top_k, instead=float("-inf"))


def top_k(input: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, k) values in the input's format and int64 indices."""
    values, indices = input.topk(k, dim=-1, sorted=False)
    return values, indices


def top_k_within(input: torch.Tensor, lengths: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, k) int64 positions of the largest among the first ``lengths`` entries, and which of them there are."""
    width = input.shape[1]
    beyond = torch.arange(width, device=input.device) >= lengths[:, None]
    positions = input.masked_fill(beyond, float("-inf")).topk(min(k, width), dim=-1).indices
    positions = torch.nn.functional.pad(positions, (0, k - positions.shape[1]))
    return positions, torch.arange(k, device=input.device) < lengths[:, None]


def top_k_ragged_transform(input: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor, k: int) -> torch.Tensor:
    """(rows, k) int32: positions of the largest plus the row's offset, then -1."""
    positions, there = top_k_within(input, lengths, k)
    return torch.where(there, positions + offsets[:, None], -1).to(torch.int32)


def top_k_page_table_transform(
    input: torch.Tensor, src_page_table: torch.Tensor, lengths: torch.Tensor, k: int
) -> torch.Tensor:
    """(rows, k) int32: the page table's entries of the largest, then -1."""
    positions, there = top_k_within(input, lengths, k)
    return torch.where(there, src_page_table[: len(input)].gather(-1, positions), -1)


def speculate(
    draft_probs: torch.Tensor,
    draft_token_ids: torch.Tensor,
    target_probs: torch.Tensor,
    seed: int,
    offset: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chain speculative sampling: (batch, n + 1) int32 tokens, and (batch,) int32 counts of draft tokens that each by
    itself would be accepted, and that are.
    """
    batch, length = draft_token_ids.shape
    places = torch.arange(length + 1, device=draft_token_ids.device)
    chance = torch.rand(batch, length, device=draft_token_ids.device, generator=seeded(generator, seed, offset))
    accept = chance * _at(draft_probs, draft_token_ids) < _at(target_probs[:, :-1], draft_token_ids)
    emitted = accept.cumprod(dim=-1).sum(dim=-1, keepdim=True)
    extra = fastest(_following(draft_probs, target_probs, emitted), generator)[:, None]
    ids = torch.nn.functional.pad(draft_token_ids, (0, 1))
    tokens = torch.where(places < emitted, ids, torch.where(places == emitted, extra, -1))
    return tokens, accept.sum(dim=-1).to(torch.int32), emitted[:, 0].to(torch.int32)


def _at(probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(batch, n) probabilities of tokens."""
    return probs.gather(-1, ids[..., None].to(torch.int64))[..., 0]


def _following(draft_probs: torch.Tensor, target_probs: torch.Tensor, emitted: torch.Tensor) -> torch.Tensor:
    """(batch, vocab) weights of the token after so many: max(Q - P, 0), and Q alone after all."""
    rows, length = torch.arange(len(emitted), device=emitted.device), draft_probs.shape[1]
    target = target_probs[rows, emitted[:, 0]]
    draft = draft_probs[rows, emitted[:, 0].clamp(max=length - 1)]
    return (target - torch.where(emitted < length, draft, 0.0)).clamp(min=0)
