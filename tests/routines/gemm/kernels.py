"""Products with one thing wrong, made of the torch backends; and what the tests of several routines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashinfer_perf.core.record import Status
from tests.fakes import HOPPER
from tests.routines.harness import assert_caught, case_of, run, run_broken
from tests.routines.norm.kernels import nan, one_column_off, writes_nothing, wrong, zeros

Change = Callable[[Any, dict[str, Any]], dict[str, Any]]


def transposed(case: Any, arguments: dict[str, Any]) -> None:
    """Each matrix of the output in the other order, in the same memory."""
    out = arguments["out"]
    out.copy_(out.clone().transpose(-2, -1).reshape(out.shape))


def one_row_off(case: Any, arguments: dict[str, Any]) -> None:
    out = arguments["out"]
    out.copy_(out.roll(1, dims=-2))


def scaled(factor: float) -> Callable[[Any, dict[str, Any]], None]:
    def spoil(case: Any, arguments: dict[str, Any]) -> None:
        arguments["out"].copy_(arguments["out"].float() * factor)

    return spoil


def last_row_not_written(case: Any, arguments: dict[str, Any]) -> None:
    """As a kernel leaves it whose grid is too small."""
    arguments["out"][..., -1, :].fill_(float("nan"))


SPOILT = {
    "zeros": zeros("out"),
    "nan": nan("out"),
    "one row off": one_row_off,
    "one column off": one_column_off("out"),
    "transposed": transposed,
    "last row not written": last_row_not_written,
    "scaled up": scaled(1.03),
    "scaled down": scaled(0.97),
    "negated": scaled(-1.0),
}
"""What any product may get wrong with its output."""


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """The argument of that name, changed on a copy."""
    return lambda case, arguments: {name: change(arguments[name].clone())}


def swapped(one: str, other: str) -> Change:
    return lambda case, arguments: {one: arguments[other], other: arguments[one]}


def short_by(count: int, name: str = "a") -> Change:
    """The last ``count`` products of each sum are left out; of packed operands ``count`` bytes."""

    def cut(operand: torch.Tensor) -> torch.Tensor:
        operand[..., -count:].view(torch.uint8).zero_()
        return operand

    return replaced(name, cut)


def assert_all_caught(name: str, changes: dict[str, Change], flags: str = "") -> None:
    for what, change in changes.items():
        try:
            assert_caught(run_broken(name, wrong(name, before=change), flags))
        except AssertionError as error:
            raise AssertionError(f"not caught: {what}: {error}") from error


def assert_outputs_are_judged(name: str, flags: str = "") -> None:
    """All that any product may get wrong with its output is caught."""
    for what, spoil in SPOILT.items():
        try:
            assert_caught(run_broken(name, wrong(name, after=spoil), flags))
        except AssertionError as error:
            raise AssertionError(f"not caught: {what}: {error}") from error
    assert_caught(run_broken(name, writes_nothing(name), flags))


def reason_on(machine: Any, name: str, backend: str, flags: str) -> str:
    """Why a backend cannot run a case on a machine; '' when it can."""
    case = case_of(name, f"{flags} --backends {backend}")
    unmet = case.routine.backends[backend].unmet(machine, case.flags)
    return unmet[1] if unmet else ""


def assert_refused(name: str, backend: str, flags: str, says: str) -> None:
    """Refused for what the case asks for, wherever it is run."""
    case = case_of(name, f"{flags} --backends {backend}")
    reasons = [need.unmet(HOPPER, case.flags) for need in case.routine.backends[backend].requires if needs_case(need)]
    found = [reason for reason in reasons if reason]
    assert any(says in reason for reason in found), f"{found}"


def needs_case(requirement: Any) -> bool:
    return not requirement.on_capability and not requirement.on_package


def assert_runs_nowhere_without_gpu(name: str, backend: str, flags: str = "") -> None:
    record = run(name, flags, backend)
    assert record.status is Status.UNSUPPORTED
    assert "it needs a CUDA GPU" in record.reason


def given_out(**arguments: Any) -> torch.Tensor:
    """What a stand-in for a library's product returns: the output that it was given."""
    return arguments["out"]
