"""What ``--validate`` does beyond looking at a call's output: the same exchange with tokens that can be recognised.

For the case's own routing, and for unusual ones:

1. Tokens that carry their identity: each arrives on the ranks of its experts, once, with all its bytes.
2. Small integers, weighted with integers: the sum that comes back is exact, bit for bit.
3. The case's own numbers, with stand-ins for the experts that multiply by factors of their own: within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flashinfer_perf.checks.close import Close, compare
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe_comm import identity
from flashinfer_perf.routines.moe_comm.exchange import Arrived, Exchange, answered
from flashinfer_perf.routines.moe_comm.payload import Payload, WireFormat
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.routines.moe_comm.stand_in import LARGEST_INTEGER, answer_of, factor, most_answers
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Outputs
from flashinfer_perf.run.ranks import Ranks

LARGEST_HIDDEN = 3
"""Of the integers: with one in every block of 16, all formats' scales are powers of two and its integers exact."""
BLOCK = 16


@dataclass(frozen=True)
class Validation:
    """All that the passes need to know.

    Attributes:
        hidden: (tokens, columns) before quantisation; payload: as sent; factor: its global one.
        weights: (tokens, top_k) fp32.
        routings: (tokens, top_k) int32 expert ids by name, the case's own first.
        rounding: of a sum of the ranks' answers.
        quantisation: relative L2 norm that the payload's error may have.
    """

    ranks: Ranks
    experts: Experts
    format: WireFormat
    hidden: torch.Tensor
    payload: Payload
    factor: float
    weights: torch.Tensor
    routings: Mapping[str, torch.Tensor]
    rounding: Close
    quantisation: float

    def run(self, launch: Launch) -> Finding:
        """Every rank must call it. Leaves the exchange's answers as they were."""
        exchange: Exchange = launch.kwargs["exchange"]
        was_marked, exchange.marked = exchange.marked, True
        try:
            findings = [*self._quantised(), *(f for name in self.routings for f in self._passes(name, launch))]
        finally:
            exchange.marked = was_marked
        fill_in(launch, self.experts, self.ranks.rank)
        return _worst(findings)

    def _passes(self, name: str, launch: Launch) -> Iterator[Finding]:
        expert_ids = self.routings[name]
        yield self._identities(name, launch, expert_ids)
        yield self._integers(name, launch, expert_ids)
        yield self._numbers(name, launch, expert_ids)

    def _quantised(self) -> Iterator[Finding]:
        """The payload stands for the hidden states within the error of its format."""
        hidden, decoded = self.hidden.double(), self.format.decode(self.payload, self.factor).double()
        error = float((decoded - hidden).norm() / hidden.norm().clamp(min=torch.finfo(torch.float64).tiny))
        detail = f"the payload's relative L2 error is {error:.3g}, and {self.quantisation:.3g} its format's"
        passed = error <= self.quantisation
        yield Finding("payload", passed, detail, len(hidden), 0 if passed else len(hidden), relative_l2=error)

    def _identities(self, name: str, launch: Launch, expert_ids: torch.Tensor) -> Finding:
        tokens = len(expert_ids)
        all_ids = torch.cat(self.ranks.all_gather(expert_ids.cpu())).to(expert_ids.device)
        numbers = self.ranks.rank * tokens + torch.arange(tokens, device=expert_ids.device)
        rows = identity.rows_of(numbers, expert_ids, tuple(part for part in self.payload if part is not None))
        own_answer = answer_of(torch.tensor([self.ranks.rank], device=expert_ids.device), 1, 1)
        arrived = answered(launch, lambda _: own_answer, **_named(rows))
        used = launch.kwargs["exchange"].used(arrived)
        needed = self.experts.wanted(all_ids)[:, self.ranks.rank]
        found = identity.examine(tuple(part[used] for part in arrived.rows), all_ids, needed)
        detail = f"dispatch, {name}: {found.text}"
        return Finding("validation", found.wrong == 0, detail, found.expected, found.wrong)

    def _integers(self, name: str, launch: Launch, expert_ids: torch.Tensor) -> Finding:
        hidden, weights = self._integer_rows(expert_ids)
        payload = self.format.encode(hidden.to(self.hidden.dtype), 1.0)
        out = torch.empty_like(launch.kwargs["out"])
        rows = (expert_ids, weights, *payload)

        def answer(arrived: Arrived) -> torch.Tensor:
            return self._expert(arrived, 1.0, torch.ones_like)

        answered(launch, answer, **_named(rows), out=out)
        expected = hidden.double() * weights.double().sum(dim=1, keepdim=True)
        wrong = int((out.double() != expected).any(dim=1).sum())
        detail = f"combine, {name}: sums of integers of {wrong} tokens are not exact"
        return Finding("validation", wrong == 0, detail, len(expert_ids), wrong)

    def _numbers(self, name: str, launch: Launch, expert_ids: torch.Tensor) -> Finding:
        out = torch.empty_like(launch.kwargs["out"])
        number = self.experts.number
        rows = (expert_ids, self.weights, *self.payload)

        def answer(arrived: Arrived) -> torch.Tensor:
            return self._expert(arrived, self.factor, lambda ids: factor(ids.float(), number))

        answered(launch, answer, **_named(rows), out=out)
        decoded = self.format.decode(self.payload, self.factor).double()
        shares = self.weights.double() * factor(expert_ids.double(), number)
        return compare(f"experts, {name}", out, decoded * shares.sum(dim=1, keepdim=True), self.rounding)

    def _integer_rows(self, expert_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, columns) and (tokens, top_k) fp32 whose weighted sums are at most ``LARGEST_INTEGER``."""
        (tokens, top_k), device = expert_ids.shape, expert_ids.device
        token = torch.arange(tokens, device=device)[:, None] + 5 * self.ranks.rank
        column, choice = torch.arange(self.hidden.shape[1], device=device), torch.arange(top_k, device=device)
        hidden = (token * 7 + column * 5 + token * column) % (2 * LARGEST_HIDDEN + 1) - LARGEST_HIDDEN
        hidden = torch.where(column % BLOCK == 0, LARGEST_HIDDEN, hidden)
        most = LARGEST_INTEGER // LARGEST_HIDDEN
        weights = 1 + (token * 3 + choice * 5) % max(most // top_k, 1)
        return hidden.float(), torch.where(choice < most, weights, 0).float()

    def _expert(self, arrived: Arrived, factor: float, of: Any) -> torch.Tensor:
        """(slots, columns) fp32: rows times the weights of the experts that are here, and what ``of`` says of those."""
        ids, weights, *payload = arrived.rows
        own = self.experts.owned_by(self.ranks.rank, ids)
        shares = torch.where(own, weights * of(ids).float(), torch.zeros((), device=ids.device))
        contiguous = Payload(*(part.contiguous() for part in payload))
        return self.format.decode(contiguous, factor) * shares.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Validated:
    """A check of an output with a validation beside it.

    Attributes:
        output: judges the output itself.
    """

    output: Close
    validation: Validation

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        return self.output.judge(name, actual, expected)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return self.output.agree(name, actual, other)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return self.validation.run(launch)


def fill_in(launch: Launch, experts: Experts, rank: int) -> None:
    """Puts this rank's answer where experts would write theirs; it stays there for the calls to come."""
    ids, out = launch.kwargs["expert_ids"], launch.kwargs["out"]
    answer = answer_of(torch.tensor([rank], device=out.device), out.shape[1], most_answers(experts, ids.shape[1]))
    answered(launch, lambda _: answer)


def _named(rows: tuple[torch.Tensor | None, ...]) -> dict[str, Any]:
    """As arguments of a call."""
    return dict(zip(("expert_ids", "weights", "hidden", "scales"), rows, strict=False))


def _worst(findings: list[Finding]) -> Finding:
    """The first that failed, or all of them as one."""
    failed = next((finding for finding in findings if not finding.passed), None)
    return failed or Finding("validation", True, "all rows and sums as they ought to be", len(findings))
