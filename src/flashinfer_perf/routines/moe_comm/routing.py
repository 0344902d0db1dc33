"""Which experts tokens go to, and which ranks own those: rank r has the experts r * E / N up to (r + 1) * E / N."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.run.factory import TensorFactory


class Experts(NamedTuple):
    """How experts lie on ranks."""

    number: int
    ranks: int

    @property
    def per_rank(self) -> int:
        return self.number // self.ranks

    def wanted(self, expert_ids: torch.Tensor) -> torch.Tensor:
        """(tokens, ranks) booleans: which ranks own at least one of a token's experts."""
        wanted = torch.zeros(len(expert_ids), self.ranks, dtype=torch.bool, device=expert_ids.device)
        return wanted.scatter_(1, expert_ids.long() // self.per_rank, True)

    def owned_by(self, rank: int, expert_ids: torch.Tensor) -> torch.Tensor:
        """Which of some experts a rank has; booleans of their shape."""
        return expert_ids // self.per_rank == rank


def draw_experts(case: MoeCommFlags, make: TensorFactory) -> torch.Tensor:
    """(tokens, top_k) int32: for each token different experts, all equally likely."""
    return _largest(case, make, "expert_ids", lambda numbers: 0 * numbers)


def draw_weights(case: MoeCommFlags, make: TensorFactory) -> torch.Tensor:
    """(tokens, top_k) fp32 on [0, 1), not normalised."""
    return make.uniform("weights", (case.num_tokens, case.top_k), DType.FLOAT32)


def unusual_routings(case: MoeCommFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """Expert ids, as ``draw_experts`` gives them, that an exchange is checked with beside the drawn ones.

    A few experts get most tokens; all go to the first rank, or to the last one, and to no other where top_k is not
    more than a rank's experts.
    """
    owner = Experts(case.num_experts, make.ranks.size)
    found = {"uneven": _largest(case, make, "uneven", lambda numbers: 1 / (1 + numbers))}
    for rank in sorted({0, make.ranks.size - 1}):
        name = f"all to rank {rank}"
        found[name] = _largest(case, make, name, partial(_preference, owner, rank))
    return found


def _preference(owner: Experts, rank: int, numbers: torch.Tensor) -> torch.Tensor:
    """More than any number that is drawn, for the experts of one rank."""
    return 2.0 * owner.owned_by(rank, numbers)


def _largest(
    case: MoeCommFlags, make: TensorFactory, name: str, bonus: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The experts with the largest of uniform numbers to which a bonus is added, by the expert's number."""
    make.reserve(name.replace(" ", "_"), (2 * case.num_tokens, case.num_experts), DType.FLOAT32)
    draws = torch.rand(case.num_tokens, case.num_experts, generator=make.generator(name))
    draws += bonus(torch.arange(case.num_experts))
    return draws.topk(case.top_k).indices.to(torch.int32).to(make.device)
