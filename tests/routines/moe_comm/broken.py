"""Dispatch and combine with an error each; the checks must find every one.

Under mpirun this is a plug-in: a module on the path calls ``declare``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from flashinfer_perf.routines.moe_comm.moe_a2a_dispatch_combine import (
    Exchange,
    apply_experts,
    combine,
    dispatch,
    factor,
    gloo,
    moe_a2a,
)
from flashinfer_perf.run.launch import Launch, Phase


def zeros(processed, *, out, **call):
    combine(processed, out=out, **call)
    out.zero_()


def writes_nothing(processed, **call):
    pass


def one_nan(processed, *, out, **call):
    combine(processed, out=out, **call)
    out[-1, -1] = float("nan")


def one_token_off(processed, *, out, **call):
    combine(processed, out=out, **call)
    out.copy_(out.roll(1, dims=0))


def rows_to_the_wrong_tokens(processed, **call):
    combine(processed._replace(tokens=processed.tokens.flip(0)), **call)


def adds_to_what_was_there(processed, *, out, **call):
    before = out.clone()
    combine(processed, out=out, **call)
    out.add_(before)


def changes_the_hidden_states(_, *, hidden, **call):
    hidden[0, 0] += 1
    return dispatch(None, hidden=hidden, **call)


def changes_the_routing(processed, *, expert_ids, **call):
    combine(processed, **call)
    expert_ids[0] = expert_ids[0].flip(0)


def weights_of_the_wrong_expert(arrived, *, num_experts, **call):
    """Each expert's number one too high."""
    wrong = arrived._replace(expert_ids=arrived.expert_ids + 1)
    return scaled(arrived, factor(wrong.expert_ids.float(), num_experts), num_experts=num_experts, **call)


def weights_of_the_last_expert(arrived, *, num_experts, **call):
    mirrored = num_experts - 1 - arrived.expert_ids
    return scaled(arrived, factor(mirrored.float(), num_experts), num_experts=num_experts, **call)


def forgets_a_tokens_second_expert(arrived, *, num_experts, **call):
    factors = factor(arrived.expert_ids.float(), num_experts)
    factors[:, 1:] = 0
    return scaled(arrived, factors, num_experts=num_experts, **call)


def mean_over_the_experts(arrived, *, num_experts, **call):
    factors = factor(arrived.expert_ids.float(), num_experts) / arrived.expert_ids.shape[1]
    return scaled(arrived, factors, num_experts=num_experts, **call)


def scaled(arrived: Exchange, factors: torch.Tensor, *, num_experts: int, ranks: Any, **_: Any) -> Exchange:
    """What apply_experts does, with other factors."""
    own = arrived.expert_ids // (num_experts // ranks.size) == ranks.rank
    total = torch.where(own, factors, torch.zeros(())).sum(dim=1, keepdim=True)
    return arrived._replace(rows=(arrived.rows.float() * total).to(arrived.rows.dtype))


ON_ONE_RANK: dict[str, dict[str, Callable[..., Any]]] = {
    **{
        kernel.__name__: {"combine": kernel}
        for kernel in (zeros, writes_nothing, one_nan, one_token_off, rows_to_the_wrong_tokens)
    },
    **{kernel.__name__: {"combine": kernel} for kernel in (adds_to_what_was_there, changes_the_routing)},
    "changes_the_hidden_states": {"dispatch": changes_the_hidden_states},
    **{
        kernel.__name__: {"experts": kernel}
        for kernel in (
            weights_of_the_wrong_expert,
            weights_of_the_last_expert,
            forgets_a_tokens_second_expert,
            mean_over_the_experts,
        )
    },
}


# ---- Errors that only show with several ranks ----


def tokens_to_the_wrong_rank(_, *, expert_ids, num_experts, ranks, **call):
    """Every token goes where the rank behind its experts' is."""
    shifted = (expert_ids + num_experts // ranks.size) % num_experts
    sent = dispatch(None, expert_ids=shifted, num_experts=num_experts, ranks=ranks, **call)
    return sent._replace(expert_ids=(sent.expert_ids - num_experts // ranks.size) % num_experts)


def experts_of_every_rank(arrived, *, num_experts, **call):
    """A token that went to two ranks gets all its experts on both."""
    total = factor(arrived.expert_ids.float(), num_experts).sum(dim=1, keepdim=True)
    return arrived._replace(rows=(arrived.rows.float() * total).to(arrived.rows.dtype))


def rows_of_the_last_rank_dropped(processed, *, ranks, **call):
    """Only on the first rank: the others' outputs are right."""
    if ranks.rank == 0:
        rows = processed.rows.clone()
        rows[sum(processed.received[:-1]) :] = 0
        processed = processed._replace(rows=rows)
    combine(processed, ranks=ranks, **call)


def wrong_on_the_last_rank_only(processed, *, out, ranks, **call):
    combine(processed, out=out, ranks=ranks, **call)
    if ranks.rank == ranks.size - 1:
        out[0] = 0


def changes_an_input_of_the_last_rank(processed, *, hidden, ranks, **call):
    combine(processed, hidden=hidden, ranks=ranks, **call)
    if ranks.rank == ranks.size - 1:
        hidden[0, 0] += 1


def overwrites_in_place_of_adding(processed, *, out, **call):
    combine(processed, out=out, **call)
    last = torch.zeros_like(out)
    last[processed.tokens] = processed_rows_back(processed)
    out.copy_(last)


def processed_rows_back(processed: Exchange) -> torch.Tensor:
    back = torch.empty(sum(processed.sent), processed.rows.shape[1], dtype=processed.rows.dtype)
    rows = processed.rows.contiguous().view(torch.uint8)
    torch.distributed.all_to_all_single(back.view(torch.uint8), rows, processed.sent, processed.received)
    return back


ON_TWO_RANKS: dict[str, dict[str, Callable[..., Any]]] = {
    **ON_ONE_RANK,
    "tokens_to_the_wrong_rank": {"dispatch": tokens_to_the_wrong_rank},
    "experts_of_every_rank": {"experts": experts_of_every_rank},
    "rows_of_the_last_rank_dropped": {"combine": rows_of_the_last_rank_dropped},
    "wrong_on_the_last_rank_only": {"combine": wrong_on_the_last_rank_only},
    "changes_an_input_of_the_last_rank": {"combine": changes_an_input_of_the_last_rank},
    "overwrites_in_place_of_adding": {"combine": overwrites_in_place_of_adding},
}


def prepare_with(changed: dict[str, Callable[..., Any]]) -> Callable[..., Launch]:
    """The right launch with other functions in some of its phases."""

    def prepare(case: Any, problem: Any) -> Launch:
        import dataclasses

        launch = gloo(case, problem)
        right = {"dispatch": dispatch, "experts": apply_experts, "combine": combine}
        phases = tuple(Phase(name, changed.get(name, fn)) for name, fn in right.items())
        return dataclasses.replace(launch, phases=phases)

    return prepare


def declare(names: Iterable[str]) -> None:
    """Makes backends of them."""
    for name in names:
        moe_a2a.backend(name)(prepare_with(ON_TWO_RANKS[name]))
