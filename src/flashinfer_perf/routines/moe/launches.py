"""The routed layer's launches by PyTorch and by this project's Triton kernels, whatever its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, capability
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe import eager, hidden
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.router import Router
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

if TYPE_CHECKING:
    from flashinfer_perf.kernels.moe.experts import TritonExperts
    from flashinfer_perf.kernels.moe.routing import TritonRouting
    from flashinfer_perf.kernels.moe.weights import ExpertWeights

MULTIPLES = {"FP8_BLOCK": 128, "NVFP4": 64}
"""What this project's kernels want both sizes to be multiples of, by format; a test asks them."""
MULTIPLE = 32
"""Of the other formats."""


def triton(format_of: Callable[[MoeFlags], str]) -> tuple[Requirement, ...]:
    """What this project's kernels need.

    Args:
        format_of: gives the name of a member of ``kernels.moe.weights.ExpertFormat``.
    """

    def unmet(machine: Machine, case: Any) -> str | None:
        multiple = 1 if case is None else MULTIPLES.get(format_of(case), MULTIPLE)
        if case is None or not (case.hidden_size % multiple or case.intermediate_size // case.tp_size % multiple):
            return None
        return f"the kernels need hidden_size and a rank's part of intermediate_size divisible by {multiple}"

    text = "hidden_size and a rank's part of intermediate_size divisible by 32, in NVFP4 by 64, in FP8 blocks by 128"
    sizes = Requirement(text, unmet)
    return (capability(minimum="8.9"), triton_installed, sizes)


SCALES = ("w1_scale", "w2_scale", "w1_global", "w2_global")
WEIGHTS = ("w1", "w2", *SCALES)
TAKEN = ("x", "x_scale", "w1", "w2", *SCALES, "routing_logits", "routing_bias")
"""Of a problem's tensors, those that these launches read."""


def arguments(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    """The tensors of a problem with a router, with room for the results."""
    device = problem["x"].device
    shape = (case.num_tokens, case.top_k)
    kwargs: dict[str, Any] = {name: tensor for name, tensor in problem.tensors.items() if name in TAKEN}
    if problem["x"].dtype.itemsize == 2:
        kwargs.pop("x_scale", None)  # it belongs to the packed hidden states
    kwargs["output"] = torch.empty(problem["x"].shape, dtype=case.input_dtype.torch, device=device)
    kwargs["routing_replay_out"] = torch.empty(shape, dtype=torch.int32, device=device)
    return kwargs


def by_torch(case: MoeFlags, problem: Problem, layer: Layer) -> Launch:
    kwargs = {**arguments(case, problem), "layer": layer, "router": Router.of(case)}
    return Launch(
        routed_by_torch,
        kwargs=kwargs,
        mutates=("output", "routing_replay_out"),
        host_sync=True,
        no_graph=eager.NO_GRAPH,
    )


def routed_by_torch(
    layer: Layer,
    router: Router,
    routing_logits: torch.Tensor,
    output: torch.Tensor,
    routing_replay_out: torch.Tensor,
    routing_bias: torch.Tensor | None = None,
    **tensors: torch.Tensor,
) -> None:
    """Writes output (tokens, hidden) and the experts (tokens, top_k)."""
    weights = torch.empty(routing_replay_out.shape, dtype=torch.float32, device=output.device)
    eager.route(router, routing_logits, routing_bias, routing_replay_out, weights)
    eager.mix(layer, experts=routing_replay_out, weights=weights, output=output, **tensors)


def by_triton(case: MoeFlags, problem: Problem, layer: Layer, format: str) -> Launch:
    """
    Args:
        format: name of a member of ``kernels.moe.weights.ExpertFormat``.
    """
    from flashinfer_perf.kernels.moe.routing import TritonRouting

    router, kwargs = Router.of(case), arguments(case, problem)
    grouped = router.method == "deepseek_v3"
    route = TritonRouting(
        router.method,
        num_experts=case.num_experts,
        top_k=router.top_k,
        n_group=router.n_group if grouped else None,
        topk_group=router.topk_group if grouped else None,
        routed_scaling_factor=router.scaling,
    )
    weights = torch.empty(case.num_tokens, case.top_k, device=problem["x"].device)
    experts = planned(case, problem, layer, format)
    kwargs |= {**weights_of(experts), "plan": Routed(route, experts, weights)}
    return Launch(routed_by_triton, kwargs=kwargs, mutates=("output", "routing_replay_out"))


class Sizes(Protocol):
    """Of a layer, in any family's flags."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def input_dtype(self) -> DType: ...


def planned(case: Sizes, problem: Problem, layer: Layer, format: str, **more: Any) -> TritonExperts:
    """The kernels' plan; a call may have copies of its weights (``weights_of``).

    Args:
        format: name of a member of ``kernels.moe.weights.ExpertFormat``.
        more: arguments of ``TritonExperts``, in place of what follows from the case. In FP8 with one scale for a matrix
            the second product's input has a given scale, unless ``intermediate_scale`` is None.
    """
    from flashinfer_perf.kernels.moe.experts import TritonExperts

    weights = expert_weights(format, problem.tensors)
    given = {
        "num_tokens": case.num_tokens,
        "top_k": case.top_k,
        "num_experts": case.num_experts,
        "dtype": case.input_dtype.torch,
        "activation": layer.activation,
        "expert_offset": layer.experts.start,
        "scales_on_input": layer.weights_on_input,
    }
    if format == "FP8_TENSOR":
        given["intermediate_scale"] = torch.full((1,), 1 / hidden.BETWEEN_FP8, device=weights.w1.device)
    return TritonExperts(weights, **{**given, **more})


def expert_weights(format: str, tensors: Any) -> ExpertWeights:
    """The weights among some tensors."""
    from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

    scales = {name: tensors[name] for name in SCALES if name in tensors}
    return ExpertWeights(ExpertFormat[format], tensors["w1"], tensors["w2"], **scales)


def weights_of(plan: TritonExperts) -> dict[str, torch.Tensor]:
    """Arguments of a call: the weights by name, in the form that the kernels read."""
    found = {name: getattr(plan.weights, name) for name in WEIGHTS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


class Routed:
    """A router's kernel, then the experts' kernels, with the routing weights between them."""

    def __init__(self, route: TritonRouting, experts: TritonExperts, weights: torch.Tensor) -> None:
        self.route, self.experts, self.weights = route, experts, weights

    def __call__(
        self,
        tensors: dict[str, torch.Tensor],
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        chosen: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        self.route(logits, bias, chosen, self.weights)
        mix(self.experts, tensors, chosen, self.weights, output)


def mix(
    experts: TritonExperts,
    tensors: dict[str, torch.Tensor],
    chosen: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """One call with these weights: a timer goes through several copies of them, if they are small."""
    held = weights_of(experts)
    if any(tensors[name] is not tensor for name, tensor in held.items()):
        experts.use(dataclasses.replace(experts.weights, **{name: tensors[name] for name in held}))
    experts(tensors["x"], chosen, weights, output, x_scale=tensors.get("x_scale"))


def mixed_by_triton(
    plan: TritonExperts, experts: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, **tensors: torch.Tensor
) -> None:
    """Writes output (tokens, hidden), for experts and weights that are given."""
    mix(plan, tensors, experts, weights, output)


def routed_by_triton(
    plan: Callable[..., None],
    routing_logits: torch.Tensor,
    output: torch.Tensor,
    routing_replay_out: torch.Tensor,
    routing_bias: torch.Tensor | None = None,
    **tensors: torch.Tensor,
) -> None:
    """Writes output (tokens, hidden) and the experts (tokens, top_k)."""
    plan(tensors, routing_logits, routing_bias, routing_replay_out, output)
