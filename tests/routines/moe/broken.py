"""Mixtures with one thing wrong, made of the torch backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from tests.routines.gemm.kernels import Change, assert_all_caught
from tests.routines.harness import assert_caught, run_broken
from tests.routines.norm.kernels import nan, one_column_off, one_row_off, writes_nothing, wrong, zeros

CASE = "--num_tokens 9 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2"


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """The argument of that name, its bytes changed on a copy where the format has no operations of its own."""

    def before(case: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        tensor = arguments[name]
        if tensor.dtype is torch.float8_e4m3fn:
            return {name: change(tensor.view(torch.uint8).clone()).contiguous().view(tensor.dtype)}
        return {name: change(tensor.clone()).contiguous()}

    return before


def neighbours(name: str, dim: int) -> Change:
    """What stands beside the right thing."""
    return changed(name, lambda tensor: tensor.roll(1, dim))


def layer(**changes: Any) -> Change:
    return lambda case, arguments: {"layer": dataclasses.replace(arguments["layer"], **changes)}


def router(**changes: Any) -> Change:
    return lambda case, arguments: {"router": dataclasses.replace(arguments["router"], **changes)}


def halves_swapped(weights: torch.Tensor) -> torch.Tensor:
    return torch.cat(weights.chunk(2, dim=1)[::-1], dim=1)


def dropped_token(case: Any, arguments: dict[str, Any]) -> None:
    arguments["output"][-1] = 0


def another_tokens_row(case: Any, arguments: dict[str, Any]) -> None:
    arguments["output"][0] = arguments["output"][1]


def scaled(factor: float) -> Callable[[Any, dict[str, Any]], None]:
    def spoil(case: Any, arguments: dict[str, Any]) -> None:
        arguments["output"].mul_(factor)

    return spoil


OUTPUTS = {
    "zeros": zeros("output"),
    "nan": nan("output"),
    "one row off": one_row_off("output"),
    "one column off": one_column_off("output"),
    "a dropped token": dropped_token,
    "another token's row": another_tokens_row,
    "negated": scaled(-1.0),
    "a quarter more": scaled(1.25),
}
WEIGHTS = {
    "another expert's first matrix": neighbours("w1", 0),
    "another expert's second matrix": neighbours("w2", 0),
    "gate and up swapped": changed("w1", halves_swapped),
    "rows of the first matrix shifted": neighbours("w1", 1),
    "rows of the second matrix shifted": neighbours("w2", 1),
    "columns of the second matrix shifted": neighbours("w2", 2),
    "experts numbered from 1": layer(experts=range(1, 9)),
    "hidden states of the token before": neighbours("x", 0),
}
"""What any format may get wrong."""


def assert_everything_is_caught(name: str, more: dict[str, Change], flags: str = CASE) -> None:
    """The common mistakes and ``more``."""
    assert_all_caught(name, {**WEIGHTS, **more}, flags)
    for what, spoil in OUTPUTS.items():
        try:
            assert_caught(run_broken(name, wrong(name, after=spoil), flags))
        except AssertionError as error:
            raise AssertionError(f"not caught: {what}: {error}") from error
    assert_caught(run_broken(name, writes_nothing(name), flags))
