"""What stands for the experts where none are computed: answers that tell whose they are."""

from __future__ import annotations

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.routing import Experts

LARGEST_INTEGER = 256
"""Up to which all 16-bit formats have every integer, so that sums of answers are exact in any order."""


def answer_of(ranks: torch.Tensor, columns: int, most: int) -> torch.Tensor:
    """(ranks, columns) fp32: what each rank answers every token with, another for every rank and column.

    Args:
        most: answers that are summed into one token at most.
    """
    different = max(LARGEST_INTEGER // most, 1)
    column = torch.arange(columns, device=ranks.device)
    return (1 + (column * (2 * ranks[:, None] + 1) + ranks[:, None]) % different).float()


def sum_of_answers(expert_ids: torch.Tensor, experts: Experts, columns: int) -> torch.Tensor:
    """(tokens, columns) fp64: what comes back to each token, once from every rank that has an expert of its."""
    numbers = torch.arange(experts.ranks, device=expert_ids.device)
    answers = answer_of(numbers, columns, most_answers(experts, expert_ids.shape[1]))
    return experts.wanted(expert_ids).double() @ answers.double()


def most_answers(experts: Experts, top_k: int) -> int:
    """How many ranks a token goes to at most."""
    return min(experts.ranks, top_k)


def factor(expert_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """What the stand-in of an expert multiplies a token by: (id + 1) / num_experts + 0.5, as upstream's does."""
    return (expert_ids + 1) / num_experts + 0.5
