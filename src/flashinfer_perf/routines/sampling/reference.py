"""The mathematics of the sampling family in fp64: which tokens can be drawn or kept, and with what weight."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.checks.selected import FOREIGN, PADDING, Selection, as_they_are
from flashinfer_perf.checks.speculative import Chains
from flashinfer_perf.checks.support import Support, everything
from flashinfer_perf.checks.tolerance import ZONE, slack_of
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch


def softmax(logits: torch.Tensor, *, temperature: float = 1.0) -> Mapping[str, torch.Tensor]:
    """probs = exp(logits / temperature), divided by its sum over the last dimension; (batch, vocab) fp64."""
    return {"probs": (logits.double() / temperature).softmax(dim=-1)}


def top_k(weights: torch.Tensor, k: int, slack: float = 0.0) -> Support:
    """The k largest of each row. Equal ones stay or go together, or any of them make up the number: of entries equal
    to the k-th largest, all are in if there are no more than fit, and otherwise nobody can say.

    Args:
        weights: (rows, n).
        k: at most n.
        slack: entries so much below the k-th largest, relatively, may be in.
    """
    weights = weights.double()
    kth = weights.topk(k, dim=-1).values[:, -1:]
    fits = (weights >= kth).sum(dim=-1, keepdim=True) == k
    certain = (weights > kth) | ((weights == kth) & fits)
    return Support(weights, certain, weights >= kth - slack * kth.abs())


def greater_mass(weights: torch.Tensor) -> torch.Tensor:
    """(rows, n): for each entry the sum of the greater ones in its row; equal entries have the same."""
    values, places = weights.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    first = torch.ones_like(values, dtype=torch.bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    mass = torch.where(first, before, torch.zeros_like(before)).cummax(dim=-1).values
    return torch.empty_like(mass).scatter_(-1, places, mass)


def top_p(
    probs: torch.Tensor,
    p: float,
    slack: float = 0.0,
    least: torch.Tensor | None = None,
    most: torch.Tensor | None = None,
) -> Support:
    """The most probable tokens that together have the mass p: those with less than p in greater ones.

    Args:
        probs: (rows, n).
        p: in (0, 1].
        slack: by how much a mass may be off.
        least, most: (rows, 1), what the masses are divided by is between them; 1 by default.
    """
    probs = probs.double()
    mass, zone = greater_mass(probs), ZONE + slack
    largest = mass == 0
    certain = largest | (mass / (1.0 if least is None else least) < p - zone)
    possible = largest | (mass / (1.0 if most is None else most) < p + zone)
    return Support(probs, certain & (probs > 0), possible & (probs > 0))


def top_k_top_p(probs: torch.Tensor, k: int, p: float, *, first: bool, slack: float = 0.0) -> Support:
    """Both filters: of the same probabilities, or top-p of what top-k has left, normalised again (``first``)."""
    of_k = top_k(probs, k, slack)
    if first:
        least = of_k.weights.topk(k, dim=-1).values.sum(dim=-1, keepdim=True)
        most = torch.where(of_k.possible, of_k.weights, 0.0).sum(dim=-1, keepdim=True)
        of_p = top_p(probs, p, slack, least, most)
    else:
        of_p = top_p(probs, p, slack)
    return Support(of_k.weights, of_k.certain & of_p.certain, of_k.possible & of_p.possible)


def min_p(probs: torch.Tensor, share: float) -> Support:
    """Tokens at least as probable as that share of the most probable one."""
    probs = probs.double()
    threshold = share * probs.amax(dim=-1, keepdim=True)
    largest = probs == probs.amax(dim=-1, keepdim=True)
    certain, possible = probs >= threshold * (1 + ZONE), probs >= threshold * (1 - ZONE)
    return Support(probs, (certain | largest) & (probs > 0), possible & (probs > 0))


# ---- By routine: what filters keep ----


def top_k_renormalised(probs: torch.Tensor, *, k: int) -> Mapping[str, Support]:
    """The k largest, which are divided by their sum; (batch, vocab)."""
    return {"renorm_probs": top_k(probs, k)}


def top_p_renormalised(probs: torch.Tensor, *, p: float) -> Mapping[str, Support]:
    """The most probable up to a mass, which are divided by their sum; (batch, vocab)."""
    return {"renorm_probs": top_p(probs, p)}


def top_k_masked(logits: torch.Tensor, *, k: int) -> Mapping[str, Support]:
    """The k largest logits, as they are; (batch, vocab)."""
    return {"masked_logits": top_k(logits, k)}


# ---- By routine: what is selected ----


def largest(input: torch.Tensor, *, k: int) -> Mapping[str, Selection]:
    """The k largest of each row, and where they are; (batch, n)."""
    lengths = torch.full((len(input),), input.shape[1], device=input.device)
    found = Selection(input.double(), lengths, k, as_they_are)
    return {"values": found, "indices": found}


def with_offsets(
    input: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor, *, k: int
) -> Mapping[str, Selection]:
    """The k largest of the first ``lengths`` of each row, by their positions plus the row's offset.

    Args:
        input: (rows, max_len) scores.
        offsets, lengths: (rows,) int32.
    """
    first = offsets[:, None].to(torch.int64)

    def position_of(output: torch.Tensor) -> torch.Tensor:
        found = torch.where(output >= first, output - first, FOREIGN)
        return torch.where(output == PADDING, PADDING, found)

    return {"indices": Selection(input.double(), lengths.to(torch.int64), k, position_of)}


def through_tables(
    input: torch.Tensor, src_page_table: torch.Tensor, lengths: torch.Tensor, *, k: int
) -> Mapping[str, Selection]:
    """The k largest of the first ``lengths`` of each row, by their entries in the row's page table.

    Args:
        input: (rows, max_len) scores.
        src_page_table: (batch, max_len) int32, all numbers 0 … batch * max_len - 1 once, so that an entry tells its
            row and its position.
        lengths: (rows,) int32.
    """
    flat = src_page_table.flatten().to(torch.int64)
    place = torch.empty_like(flat).scatter_(0, flat, torch.arange(len(flat), device=flat.device))
    rows, width = input.shape
    own = torch.arange(rows, device=input.device)[:, None]

    def position_of(output: torch.Tensor) -> torch.Tensor:
        known = (output >= 0) & (output < len(place))
        found = place[output.clamp(0, len(place) - 1)]
        of_row = torch.where(known & (found // width == own), found % width, FOREIGN)
        return torch.where(output == PADDING, PADDING, of_row)

    return {"page_table": Selection(input.double(), lengths.to(torch.int64), k, position_of)}


# ---- Chain speculative sampling ----

CHAIN_OUTPUTS = ("output_token_ids", "output_accepted_token_num", "output_emitted_draft_token_num")


def acceptance(draft_probs: torch.Tensor, draft_token_ids: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """(batch, n) fp64: min(1, Q(d) / P(d)) of every draft token d; zero where the target never says it.

    Args:
        draft_probs: (batch, n, vocab) P.
        draft_token_ids: (batch, n) int32.
        target_probs: (batch, n + 1, vocab) Q.
    """
    ids = draft_token_ids.to(torch.int64)[..., None]
    draft = draft_probs.gather(-1, ids)[..., 0].double()
    target = target_probs[:, :-1].gather(-1, ids)[..., 0].double()
    return torch.where(target > 0, (target / draft).clamp(max=1.0), 0.0)


def chains(
    draft_probs: torch.Tensor, draft_token_ids: torch.Tensor, target_probs: torch.Tensor
) -> Mapping[str, Chains]:
    """All three outputs; see ``acceptance`` for the shapes."""
    possible = target_probs > 0
    possible[:, :-1] = target_probs[:, :-1] > draft_probs
    extra = target_probs[0].to(torch.float64, copy=True)
    extra[:-1] = (extra[:-1] - draft_probs[0].double()).clamp(min=0)
    extra /= extra.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    accept = acceptance(draft_probs, draft_token_ids, target_probs)
    return dict.fromkeys(CHAIN_OUTPUTS, Chains(draft_token_ids.to(torch.int64), accept, possible, extra))


# ---- By routine: the truth of the output ``samples`` ----


def from_probs(probs: torch.Tensor) -> Mapping[str, Support]:
    """Every token that has a probability."""
    return {"samples": everything(probs)}


def from_logits(logits: torch.Tensor) -> Mapping[str, Support]:
    """The same of their softmax."""
    return {"samples": everything(logits.double().softmax(dim=-1))}


def top_k_from_probs(probs: torch.Tensor, *, k: int) -> Mapping[str, Support]:
    """The k most probable tokens that have a probability."""
    found = top_k(probs, k)
    return {
        "samples": Support(found.weights, found.certain & (found.weights > 0), found.possible & (found.weights > 0))
    }


def top_p_from_probs(probs: torch.Tensor, *, p: float) -> Mapping[str, Support]:
    """The most probable tokens up to a mass."""
    return {"samples": top_p(probs, p)}


def min_p_from_probs(probs: torch.Tensor, *, share: float) -> Mapping[str, Support]:
    """Tokens not much less probable than the most probable one."""
    return {"samples": min_p(probs, share)}


def top_k_top_p_from_probs(probs: torch.Tensor, *, k: int, p: float, order: str) -> Mapping[str, Support]:
    """Both filters."""
    return {"samples": top_k_top_p(probs, k, p, first=order == "top_k_first")}


def top_k_top_p_from_logits(
    logits: torch.Tensor, *, k: int, p: float, order: str, dtype: DType
) -> Mapping[str, Support]:
    """Both filters of the softmax. FlashInfer works it out in the logits' own format, so that there is a slack."""
    probs = logits.double().softmax(dim=-1)
    return {"samples": top_k_top_p(probs, k, p, first=order == "top_k_first", slack=slack_of(dtype, logits.shape[-1]))}
