"""How a sampler is called: the timed call, and the same on a row that is replicated, with other seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.sampling import eager
from flashinfer_perf.routines.sampling.inputs import replicated
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

SEED = 42
"""Of the timed draw; checks draw with seeds of their own. Rejection samplers take as long as this draw's rounds."""


def sampler(
    function: Callable[..., Any], problem: Problem, returns: tuple[str, ...] = ("samples",), **arguments: Any
) -> Launch:
    """A call with every tensor of the problem under its own name, ``arguments``, a seed and an offset.

    ``draw`` is that call with the first row in place of every row. The row is copied here, so that the check does not
    depend on what becomes of the inputs.
    """
    kwargs = {**problem.tensors, **arguments, "seed": SEED, "offset": 0}
    first = {name: (tensor[:1].clone(), len(tensor)) for name, tensor in problem.tensors.items()}

    def draw(seed: int, offset: int) -> Any:
        same = {name: replicated(row, count) for name, (row, count) in first.items()}
        return function(**same, **arguments, seed=seed, offset=offset)

    return Launch(function, kwargs=kwargs, returns=returns, draw=draw)


def eager_sampler(
    function: Callable[..., Any], problem: Problem, returns: tuple[str, ...] = ("samples",), **arguments: Any
) -> Launch:
    """The same in PyTorch, with a generator on the inputs' device."""
    device = next(iter(problem.tensors.values())).device
    launch = sampler(function, problem, returns, **arguments, generator=torch.Generator(device=device))
    return dataclasses.replace(launch, no_graph=eager.NO_GRAPH)
