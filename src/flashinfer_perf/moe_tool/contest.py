"""What both contestants are: routines that no list shows, on the inputs of the MoE family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement
from flashinfer_perf.core.routine import Routine, Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.ranges import in_range, ranged
from flashinfer_perf.routines.moe import hidden, launches, routing, work
from flashinfer_perf.routines.moe.cutlass_fused_moe import cutlass_fused_moe, routed_tokens
from flashinfer_perf.routines.moe.cutlass_fused_moe import truth as truth_of_mixture
from flashinfer_perf.routines.moe.flags import MoeFlags as RoutineFlags
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.weights import Drawn, Format
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

BLOCK = 16
RULES = (
    Rule(lambda case: case.top_k <= case.num_experts, "top_k ({top_k}) exceeds num_experts ({num_experts})"),
    Rule(
        lambda case: case.hidden_size % BLOCK == 0 and case.intermediate_size % BLOCK == 0,
        "k ({hidden_size}) and n ({intermediate_size}) must be multiples of 16, the block of NVFP4",
    ),
)
DOCUMENTED_NAMES = {DType.FP8_E4M3: "fp8", DType.NVFP4: "nvfp4"}
"""Of formats, in the formulas of the MoE family."""


def contestant(make: Callable[[MoeFlags, TensorFactory], Problem]) -> Routine:
    """A routine of the function's name that is not among the declared ones: only the table is made of it."""
    name = make.__name__
    return Routine(name, MoeFlags, make, specs_of(MoeFlags), routing.FACTS, RULES, label=name, renamed={})


def as_routine(case: MoeFlags, **changes: Any) -> RoutineFlags:
    """The same layer in the flags of ``cutlass_fused_moe``, whose inputs and library call are the tool's, too."""
    names = ("num_tokens", "hidden_size", "intermediate_size", "num_experts", "top_k")
    same = {name: getattr(case, name) for name in names}
    flags: RoutineFlags = build(
        RoutineFlags, cutlass_fused_moe.specs, {**same, "input_dtype": DType.FLOAT16, **changes}
    )
    return flags


def as_in_the_routine(requirement: Requirement, **changes: Any) -> Requirement:
    """A limit of the routine's, asked with its flags for the same layer."""

    def unmet(machine: Machine, flags: Any) -> str | None:
        return requirement.unmet(machine, None if flags is None else as_routine(flags, **changes))

    return Requirement(requirement.text, unmet, requirement.on_capability, requirement.on_package)


def our_kernels(format: str) -> tuple[Requirement, ...]:
    """What this project's kernels need for weights of that format."""
    return tuple(as_in_the_routine(limit) for limit in launches.triton(lambda case: format))


def layer_of(case: MoeFlags) -> Layer:
    return Layer("Swiglu", range(case.num_experts))


def problem_of(case: MoeFlags, make: TensorFactory, format: Format) -> Problem:
    """Tokens ``x`` (m, k) fp16 with their ``experts`` and ``weights``, both (m, top_k), and the experts' weights, w1
    (experts, 2 n, k) with up before gate, w2 (experts, k, n). The truth is fp32 mathematics over these.
    """
    layer, same = layer_of(case), as_routine(case)
    make.reserve("output", (2 * case.num_tokens, case.hidden_size), DType.FLOAT32)  # with its truth
    sizes = (case.hidden_size, case.intermediate_size)
    drawn = Drawn(layer, sizes, DType.FLOAT16)
    tensors = {**routed_tokens(same, make), **hidden.plain(same, make), **format.make(make, drawn)}
    chosen = tensors["experts"].long()
    facts = routing.load(layer, chosen, case.num_experts)
    return Problem(
        tensors=tensors,
        reference=partial(truth_of_mixture, layer=layer, format=format),
        work=work.documented(same, DOCUMENTED_NAMES[case.weight_dtype], 0.0, facts["active_experts"]),
        checks={"output": tolerance.for_mixture(case.quant_dtype, sizes, DType.FLOAT16, before_both=True)},
        ranks=make.ranks,
        facts={**facts, **work.local(same, layer, chosen, tensors, facts["local_active_experts"])},
    )


def by_triton(case: MoeFlags, problem: Problem, format: str, per_token: bool | None) -> Launch:
    """This project's kernels; they find the scales of activations in the call, where they have any.

    Args:
        format: name of a member of ``kernels.moe.weights.ExpertFormat``.
    """
    how = {"per_token": per_token, "intermediate_scale": None}
    plan = launches.planned(as_routine(case), problem, layer_of(case), format, **how)
    kwargs = {**problem.tensors, **launches.weights_of(plan), "plan": plan, "output": room(problem)}
    return Launch(launches.mixed_by_triton, kwargs=kwargs, mutates=("output",))


def room(problem: Problem) -> torch.Tensor:
    """The output: (m, k) fp16."""
    return torch.empty_like(problem["x"])


def named(name: str) -> Any:
    """The ``state`` of a contestant's backends: an NVTX range around preparing, checking and timing."""
    return partial(ranged, name)


def annotated(name: str, launch: Launch) -> Launch:
    """The launch with an NVTX range around each invocation."""
    assert launch.fn is not None
    return dataclasses.replace(launch, fn=in_range(name, launch.fn))
