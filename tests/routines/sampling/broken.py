"""Samplers with one thing wrong, made of the right ones in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashinfer_perf.routines.sampling import launches
from flashinfer_perf.run.launch import Launch
from tests.routines.harness import routine_named

Tokens = torch.Tensor
Kernel = Callable[..., Any]
NO_ARGUMENTS = ("seed", "offset")


def wrong(name: str, change: Callable[[Kernel], Kernel]) -> Callable[[Any, Any], Launch]:
    """The routine's torch backend with its kernel changed, for the timed call and for the draws alike."""

    def prepare(case: Any, problem: Any) -> Launch:
        launch = routine_named(name).backends["torch"].prepare(case, problem)
        own = (*problem.tensors, *NO_ARGUMENTS)
        arguments = {key: value for key, value in launch.kwargs.items() if key not in own}
        return launches.sampler(change(launch.fn), problem, launch.returns, **arguments)

    return prepare


def with_arguments(**changed: Any) -> Callable[[Kernel], Kernel]:
    """Ignores what it is asked for, and takes this."""
    return lambda kernel: lambda **given: kernel(**{**given, **changed})


def spoilt(spoil: Callable[[Tokens, Tokens], Tokens]) -> Callable[[Kernel], Kernel]:
    """Tokens, and the (batch, vocab) input that they come from, to other tokens."""
    return lambda kernel: lambda **given: spoil(kernel(**given), matrix(given)).to(torch.int32)


def matrix(given: dict[str, Any]) -> torch.Tensor:
    return given["probs"] if "probs" in given else given["logits"]


# ---- Whatever the sampler ----

zeros = spoilt(lambda tokens, matrix: torch.zeros_like(tokens))
one_token_off = spoilt(lambda tokens, matrix: (tokens + 1) % matrix.shape[1])
one_token_off_at_the_end = spoilt(lambda tokens, matrix: tokens + 1)
one_row_off = spoilt(lambda tokens, matrix: tokens.roll(1))
always_the_largest = spoilt(lambda tokens, matrix: matrix.argmax(dim=-1))
always_the_same = spoilt(lambda tokens, matrix: matrix.topk(2, dim=-1).indices[:, -1])
the_first_rows_for_all = spoilt(lambda tokens, matrix: tokens[:1].expand(len(tokens)))
out_of_range = spoilt(lambda tokens, matrix: torch.cat([tokens[:-1], tokens.new_full((1,), matrix.shape[1])]))
negative = spoilt(lambda tokens, matrix: tokens - matrix.shape[1])
a_row_short = spoilt(lambda tokens, matrix: tokens[:-1])
unseeded = with_arguments(seed=0)


def not_a_number(kernel: Kernel) -> Kernel:
    def call(**given: Any) -> torch.Tensor:
        tokens = kernel(**given).float()
        tokens[0] = float("nan")
        return tokens

    return call


def of_the_first_row(kernel: Kernel) -> Kernel:
    """Every row is drawn, independently, from the first one."""

    def call(**given: Any) -> torch.Tensor:
        name = "probs" if "probs" in given else "logits"
        return kernel(**{**given, name: given[name][:1].expand_as(given[name]).contiguous()})

    return call


def biased(share: float) -> Callable[[Kernel], Kernel]:
    """That share of the draws is the largest, whatever was drawn."""

    def change(kernel: Kernel) -> Kernel:
        def call(**given: Any) -> torch.Tensor:
            tokens = kernel(**given)
            chance = torch.Generator().manual_seed(given["seed"] + 77)
            return torch.where(torch.rand(len(tokens), generator=chance) < share, best(given), tokens)

        return call

    return change


def best(given: dict[str, Any]) -> torch.Tensor:
    return matrix(given).argmax(dim=-1).to(torch.int32)


def random(kernel: Kernel) -> Kernel:
    """Draws well, but with a state of its own: no two calls are the same."""
    calls = iter(range(1_000_000))
    return lambda **given: kernel(**{**given, "seed": next(calls) * 7919 + given["seed"]})


def flat(kernel: Kernel) -> Kernel:
    """Evenly from what may be drawn."""

    def call(**given: Any) -> torch.Tensor:
        name = "probs" if "probs" in given else "logits"
        return kernel(**{**given, name: torch.ones_like(given[name]) / given[name].shape[1]})

    return call


def tempered(kernel: Kernel) -> Kernel:
    """At half the temperature."""

    def call(**given: Any) -> torch.Tensor:
        if "logits" in given:
            return kernel(**{**given, "logits": 2 * given["logits"]})
        squared = given["probs"].square()
        return kernel(**{**given, "probs": squared / squared.sum(dim=-1, keepdim=True)})

    return call


def changes_its_input(kernel: Kernel) -> Kernel:
    def call(**given: Any) -> torch.Tensor:
        tokens = kernel(**given)
        matrix(given)[-1, -1] *= 2
        return tokens

    return call


EVERYWHERE = {
    "zeros": zeros,
    "one token off": one_token_off,
    "one token off, at the end out of range": one_token_off_at_the_end,
    "one row off": one_row_off,
    "of the first row": of_the_first_row,
    "the first row's token for all": the_first_rows_for_all,
    "always the largest": always_the_largest,
    "always the same": always_the_same,
    "out of range": out_of_range,
    "negative": negative,
    "a row short": a_row_short,
    "not a number": not_a_number,
    "unseeded": unseeded,
    "random": random,
    "2 % biased": biased(0.02),
    "flat": flat,
    "at half the temperature": tempered,
    "changes its input": changes_its_input,
}
