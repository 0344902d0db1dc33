"""What every way of exchanging rows can do, and the phases of a call that uses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from flashinfer_perf.lazy import torch
from flashinfer_perf.run.launch import Launch


class Arrived(NamedTuple):
    """What dispatch brought to a rank, slot by slot, with the way back.

    Attributes:
        rows: for each of the tensors that were sent, (slots, …).
        way: what the exchange needs to send results back.
    """

    rows: tuple[torch.Tensor, ...]
    way: Any


class Exchange(Protocol):
    """Sends tokens to the ranks that own their experts, and the experts' results back. All ranks call it together.

    ``rows`` are the tensors that travel with a token, (tokens, …) each: expert ids (int32, global), weights (fp32),
    hidden states and, if the format has them, their scales.
    """

    host_sync: bool
    """A call waits for the device: it has to know how many rows come."""
    wire_rows: int
    """Rows that a dispatch sends to other ranks, over all ranks; -1 where that depends on the routing alone."""
    name: str
    marked: bool
    """Slots without a token are told from those with one, for who reads them between the phases. May cost a kernel."""

    def dispatch(self, rows: tuple[torch.Tensor, ...]) -> Arrived:
        """Brings every token to the ranks that own one of its experts, once to each."""
        ...

    def used(self, arrived: Arrived) -> torch.Tensor:
        """(slots,) booleans: which of them hold a token that has an expert here."""
        ...

    def answers(self, arrived: Arrived) -> torch.Tensor:
        """(slots, hidden) where experts write their results, which stay there until the next combine.

        In slots that are not used zeros are to be written.
        """
        ...

    def combine(self, arrived: Arrived, out: torch.Tensor) -> None:
        """Adds up, for each token of this rank, the answers of all ranks that it went to; out is (tokens, hidden)."""
        ...


def sent_rows(call: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The tensors that travel, among the arguments of a call."""
    names = ("expert_ids", "weights", "hidden", "scales")
    return tuple(call[name] for name in names if call.get(name) is not None)


def dispatch(_: None, *, exchange: Exchange, **call: Any) -> Arrived:
    """The first phase of a call."""
    return exchange.dispatch(sent_rows(call))


def combine(arrived: Arrived, *, exchange: Exchange, out: torch.Tensor, **_: Any) -> None:
    """The last phase of a call."""
    exchange.combine(arrived, out)


def answered(launch: Launch, answer: Callable[[Arrived], torch.Tensor], **changes: Any) -> Arrived:
    """A whole exchange in which ``answer`` stands for the experts: it gives (slots, hidden) of what arrived.

    By the first and the last phase of a launch, with other values for some of its arguments.
    """
    call = {**launch.kwargs, **changes}
    exchange: Exchange = call["exchange"]
    arrived: Arrived = launch.phases[0].fn(None, **call)
    answers, used = exchange.answers(arrived), exchange.used(arrived)
    answers.copy_(torch.where(used[:, None], answer(arrived), torch.zeros((), device=answers.device)))
    launch.phases[-1].fn(arrived, **call)
    return arrived
