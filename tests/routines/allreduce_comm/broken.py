"""Reductions with an error each; a check must find every one. Under mpirun this is a plug-in's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from flashinfer_perf.routines.allreduce_comm.allreduce_fusion import all_reduce, gloo, reduced_and_normalised
from flashinfer_perf.run.launch import Launch


def not_reduced(residual_out, residual, weight, group, eps):
    residual_out.add_(residual)
    return torch.nn.functional.rms_norm(residual_out, weight.shape, weight, eps)


def the_residual_of_every_rank(residual_out, residual, **call):
    """A sum of what has the residual in it already."""
    residual_out.add_(residual)
    return reduced_and_normalised(residual_out, torch.zeros_like(residual), **call)


def no_residual(residual_out, residual, **call):
    return reduced_and_normalised(residual_out, torch.zeros_like(residual), **call)


def no_weight(residual_out, weight, **call):
    return reduced_and_normalised(residual_out, weight=torch.ones_like(weight), **call)


def a_row_short(residual_out, **call):
    normalised = reduced_and_normalised(residual_out, **call)
    residual_out[-1] *= 1.02
    return normalised


def the_last_ranks_is_wrong(residual_out, **call):
    normalised = reduced_and_normalised(residual_out, **call)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        normalised[0, 0] += 1
    return normalised


def one_nan(residual_out, **call):
    normalised = reduced_and_normalised(residual_out, **call)
    normalised[0, 0] = float("nan")
    return normalised


ON_ONE_RANK = {fn.__name__: fn for fn in (no_residual, no_weight, a_row_short, the_last_ranks_is_wrong, one_nan)}
ON_SEVERAL_RANKS = {**ON_ONE_RANK, **{fn.__name__: fn for fn in (not_reduced, the_residual_of_every_rank)}}


def prepare_with(function: Callable[..., Any]) -> Callable[..., Launch]:
    """The right launch with another function."""
    return lambda case, problem: dataclasses.replace(gloo(case, problem), fn=function)


def declare(names: Iterable[str]) -> None:
    """Makes backends of them."""
    for name in names:
        all_reduce.backend(name)(prepare_with(ON_SEVERAL_RANKS[name]))
