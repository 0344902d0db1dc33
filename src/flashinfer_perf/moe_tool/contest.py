"""What both contestants are: routines that no list shows, with the tool's flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from flashinfer_perf.checks import expert_tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.routine import Fact, Routine, Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool import work
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import in_range, ranged
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

FACTS = (Fact("active_experts", "experts that have tokens"),)
BLOCK = 16
RULES = (
    Rule(lambda case: case.top_k <= case.num_experts, "top_k ({top_k}) exceeds num_experts ({num_experts})"),
    Rule(
        lambda case: case.hidden_size % BLOCK == 0 and case.intermediate_size % BLOCK == 0,
        "k ({hidden_size}) and n ({intermediate_size}) must be multiples of 16, the block of NVFP4",
    ),
)


def contestant(make: Callable[[MoeFlags, TensorFactory], Problem]) -> Routine:
    """A routine of the function's name that is not among the declared ones: the table alone is made of it."""
    name = make.__name__
    return Routine(name, MoeFlags, make, specs_of(MoeFlags), FACTS, RULES, label=name, renamed={})


def problem_of(
    case: MoeFlags, make: TensorFactory, tensors: dict[str, torch.Tensor], truth: Callable[..., dict[str, Any]]
) -> Problem:
    """Everything about a problem that does not depend on the weights' format."""
    active = len(tensors["topk_ids"].unique())
    return Problem(
        tensors=tensors,
        reference=truth,
        work=work.mixture(case, active),
        checks={"out": expert_tolerance.for_experts(case.quant_dtype, DType.FLOAT16)},
        ranks=make.ranks,
        facts={"active_experts": active},
    )


def room(problem: Problem) -> torch.Tensor:
    """The output: (m, k) fp16."""
    return torch.empty_like(problem["x"])


def routing(problem: Problem) -> dict[str, torch.Tensor]:
    """Which experts, with which weights."""
    return {name: problem[name] for name in ("topk_ids", "topk_weights")}


def named(name: str) -> Any:
    """The ``state`` of a contestant's backends: an NVTX range around preparing, checking and timing."""
    return partial(ranged, name)


def annotated(name: str, launch: Launch) -> Launch:
    """The launch with an NVTX range around each invocation."""
    assert launch.fn is not None
    return dataclasses.replace(launch, fn=in_range(name, launch.fn))
