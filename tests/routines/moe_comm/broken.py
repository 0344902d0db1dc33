"""Dispatch and combine with an error each; ``--validate`` must find every one.

Under mpirun this is a plug-in: a module on the path calls ``declare``.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import torch

from flashinfer_perf.routines.moe_comm.calls import launch_over
from flashinfer_perf.routines.moe_comm.exchange import Arrived, combine, dispatch
from flashinfer_perf.routines.moe_comm.moe_a2a_dispatch_combine import gloo, moe_a2a, whole
from flashinfer_perf.run.launch import Launch, Phase
from flashinfer_perf.run.process_group import join_process_group

IDS, WEIGHTS, HIDDEN = 0, 1, 2


# ---- combine ----


def zeros(arrived, *, out, **call):
    combine(arrived, out=out, **call)
    out.zero_()


def writes_nothing(arrived, **call):
    pass


def one_nan(arrived, *, out, **call):
    combine(arrived, out=out, **call)
    out[-1, -1] = float("nan")


def one_token_off(arrived, *, out, **call):
    combine(arrived, out=out, **call)
    out.copy_(out.roll(1, dims=0))


def rows_to_the_wrong_tokens(arrived, **call):
    combine(arrived._replace(way=arrived.way._replace(order=arrived.way.order.flip(0))), **call)


def adds_to_what_was_there(arrived, *, out, **call):
    before = out.clone()
    combine(arrived, out=out, **call)
    out.add_(before)


def changes_the_routing(arrived, *, expert_ids, **call):
    combine(arrived, expert_ids=expert_ids, **call)
    expert_ids[0] = expert_ids[0].flip(0)


def one_unit_too_much(arrived, *, out, **call):
    """By the last place of a 16-bit number: only sums that are exact show it."""
    combine(arrived, out=out, **call)
    out[0, 0] = torch.nextafter(out[0, 0].float(), torch.tensor(1e9)).to(out.dtype) + out[0, 0].abs() * 2**-7


# ---- dispatch ----


def dispatched(change: Callable[[Arrived], Any]) -> Callable[..., Arrived]:
    """Dispatch whose result is changed in place."""

    def broken(_: None, **call: Any) -> Arrived:
        arrived = dispatch(None, **call)
        if len(arrived.rows[IDS]) > 1:
            change(arrived)
        return arrived

    return broken


def twice(arrived: Arrived) -> None:
    """The first row again in place of the last one."""
    for part in arrived.rows:
        part[-1] = part[0]


def one_byte(arrived: Arrived) -> None:
    hidden = arrived.rows[HIDDEN].view(torch.uint8)
    hidden[-1, -1] ^= 1


def weights_of_another(arrived: Arrived) -> None:
    arrived.rows[WEIGHTS][:2] = arrived.rows[WEIGHTS][:2].flip(0).clone()


def weights_in_another_order(arrived: Arrived) -> None:
    arrived.rows[WEIGHTS][0] = arrived.rows[WEIGHTS][0].flip(0).clone()


def experts_one_too_high(arrived: Arrived) -> None:
    arrived.rows[IDS].add_(1)


def scales_of_another(arrived: Arrived) -> None:
    if len(arrived.rows) > 3:
        arrived.rows[-1][:2] = arrived.rows[-1][:2].flip(0).clone()


def changes_the_hidden_states(_, *, hidden, **call):
    hidden[0, 0] += 1
    return dispatch(None, hidden=hidden, **call)


ON_ONE_RANK: dict[str, dict[str, Callable[..., Any]]] = {
    **{
        kernel.__name__: {"a2a_combine": kernel}
        for kernel in (
            zeros,
            writes_nothing,
            one_nan,
            one_token_off,
            rows_to_the_wrong_tokens,
            adds_to_what_was_there,
            changes_the_routing,
            one_unit_too_much,
        )
    },
    **{
        change.__name__: {"a2a_dispatch": dispatched(change)}
        for change in (twice, one_byte, weights_of_another, weights_in_another_order, experts_one_too_high)
    },
    "changes_the_hidden_states": {"a2a_dispatch": changes_the_hidden_states},
}
ONLY_WITH_SCALES = {"scales_of_another": {"a2a_dispatch": dispatched(scales_of_another)}}


# ---- Errors that only show with several ranks ----


def tokens_to_the_wrong_rank(_, *, expert_ids, exchange, **call):
    """Every token goes where the rank behind its experts' is, and says that it is right there."""
    experts = exchange._experts
    shifted = (expert_ids + experts.per_rank) % experts.number
    arrived = dispatch(None, expert_ids=shifted, exchange=exchange, **call)
    arrived.rows[IDS].copy_((arrived.rows[IDS] - experts.per_rank) % experts.number)
    return arrived


def to_every_rank(_, *, expert_ids, exchange, **call):
    """Also to ranks that have none of a token's experts."""
    exchange._experts, experts = Everybody(*exchange._experts), exchange._experts
    arrived = dispatch(None, expert_ids=expert_ids, exchange=exchange, **call)
    exchange._experts = experts
    return arrived


class Everybody:
    """Says that every rank is wanted."""

    def __init__(self, number: int, ranks: int) -> None:
        self.ranks = ranks

    def wanted(self, expert_ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(expert_ids), self.ranks, dtype=torch.bool)


def first_rank_answers_with_zeros(arrived, *, exchange, **call):
    if exchange._experts.ranks > 1 and torch.distributed.get_rank() == 0:
        exchange.answers(arrived).zero_()
    combine(arrived, exchange=exchange, **call)


def wrong_on_the_last_rank_only(arrived, *, out, **call):
    combine(arrived, out=out, **call)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        out[0] = 0


def changes_an_input_of_the_last_rank(arrived, *, hidden, **call):
    combine(arrived, hidden=hidden, **call)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        hidden[0, 0] += 1


def only_one_ranks_answer(arrived, **call):
    """In place of the sum."""
    order = arrived.way.order.clone()
    order[:, 1:] = torch.where(order[:, :1] >= 0, -1, order[:, 1:])
    combine(arrived._replace(way=arrived.way._replace(order=order)), **call)


ON_SEVERAL_RANKS: dict[str, dict[str, Callable[..., Any]]] = {
    **ON_ONE_RANK,
    "tokens_to_the_wrong_rank": {"a2a_dispatch": tokens_to_the_wrong_rank},
    "to_every_rank": {"a2a_dispatch": to_every_rank},
    **{
        kernel.__name__: {"a2a_combine": kernel}
        for kernel in (
            first_rank_answers_with_zeros,
            wrong_on_the_last_rank_only,
            changes_an_input_of_the_last_rank,
            only_one_ranks_answer,
        )
    },
}


def prepare_with(changed: dict[str, Callable[..., Any]]) -> Callable[..., Launch]:
    """The right launch with other functions in some of its phases."""

    def prepare(case: Any, problem: Any) -> Launch:
        launch = gloo(case, problem)
        phases = tuple(Phase(phase.name, changed.get(phase.name, phase.fn)) for phase in launch.phases)
        return dataclasses.replace(launch, phases=phases)

    return prepare


def whole_over_gloo(case: Any, problem: Any) -> Launch:
    """The exchange without packing, which is meant for NCCL, on CPUs."""
    join_process_group(problem.ranks)
    return launch_over(case, problem, whole(case, problem, None))


# ---- Ranks that fail ----


def failing(fail: Callable[[], None]) -> Callable[..., Launch]:
    """A launch in whose dispatch the last rank fails while the others wait for it in a collective."""

    def broken(_: None, **call: Any) -> Arrived:
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            fail()
        return dispatch(None, **call)

    return prepare_with({"a2a_dispatch": broken})


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises() -> None:
    raise RuntimeError("the GPU has fallen off the bus")


def declare(names: Iterable[str]) -> None:
    """Makes backends of them."""
    others = {"whole": whole_over_gloo, "killed": failing(killed), "raises": failing(raises)}
    for name in names:
        moe_a2a.backend(name)(others.get(name) or prepare_with(ON_SEVERAL_RANKS[name]))
