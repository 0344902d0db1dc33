"""What the three routines of TensorRT-LLM's kernels share: flags, rules, problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.routed import ChosenExperts, MixtureOutput
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm.tuning import TUNING_FACTS
from flashinfer_perf.routines.moe import routing, work
from flashinfer_perf.routines.moe.flags import OF_GATED_ACT, MoeFlags, activation_of, local_experts
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.router import Router
from flashinfer_perf.routines.moe.weights import Drawn, Format
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Problem, Shown

USES = (
    "num_tokens",
    "hidden_size",
    "num_experts",
    "top_k",
    "input_dtype",
    "intermediate_size",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "local_expert_offset",
    "local_num_experts",
    "routing_method",
    "use_routing_bias",
    "use_routing_scales_on_input",
    "weight_dtype",
    "activation_type",
    "gated_act",
    "autotune",
    "enable_pdl",
    "routing_skew",
)
FACTS = (*routing.FACTS, *TUNING_FACTS)


def no_more_than_experts(case: MoeFlags) -> bool:
    return case.top_k <= case.num_experts


def one_activation(case: MoeFlags) -> bool:
    """Both flags name the same, or one is at its default."""
    return case.gated_act is None or case.activation_type in ("Swiglu", OF_GATED_ACT[case.gated_act])


COMMON_RULES = (
    Rule(no_more_than_experts, "top_k ({top_k}) must not exceed num_experts ({num_experts})"),
    Rule(one_activation, "--gated_act {gated_act} contradicts --activation-type {activation_type}; leave one away"),
)
RULES = (
    *COMMON_RULES,
    Rule(
        lambda case: case.routing_method == "deepseek_v3" or not (case.n_group or case.topk_group),
        "Routing kernel with groups implies DeepSeekV3 routing method. Leave --n_group and --topk_group away with "
        "--routing_method {routing_method}",
    ),
    Rule(
        lambda case: case.num_experts % (case.n_group or 1) == 0,
        "n_group ({n_group}) must divide num_experts ({num_experts})",
    ),
    Rule(
        lambda case: (case.topk_group or 1) <= (case.n_group or 1),
        "topk_group ({topk_group}) must not exceed n_group ({n_group})",
    ),
    Rule(
        lambda case: case.top_k * (case.n_group or 1) <= case.num_experts * (case.topk_group or 1),
        "top_k ({top_k}) must not exceed the experts of the --topk_group groups that a token chooses from, one by "
        "default: num_experts ({num_experts}) are in n_group ({n_group}) groups",
    ),
    Rule(
        lambda case: case.local_expert_offset < case.num_experts,
        "local_expert_offset ({local_expert_offset}) must be below num_experts ({num_experts})",
    ),
    Rule(
        lambda case: local_experts(case).stop <= case.num_experts,
        "local_num_experts ({local_num_experts}) must not reach from local_expert_offset ({local_expert_offset}) "
        "beyond num_experts ({num_experts})",
    ),
)


def divisible(block: int, what: str) -> Rule:
    """Both sizes hold whole blocks."""
    return Rule(
        lambda case: case.hidden_size % block == 0 and case.intermediate_size % block == 0,
        f"hidden_size ({{hidden_size}}) and intermediate_size ({{intermediate_size}}) must be divisible by {block}, "
        f"{what}",
    )


def layer_of(case: MoeFlags) -> Layer:
    return Layer(activation_of(case), local_experts(case), case.use_routing_scales_on_input)


def problem(
    case: MoeFlags,
    make: TensorFactory,
    x: Callable[[MoeFlags, TensorFactory], dict[str, torch.Tensor]],
    weights: Format,
    stored: str,
    between: DType,
) -> Problem:
    """
    Args:
        x: makes the hidden states.
        weights: how experts are made and decoded.
        stored: the documents' name of the format.
        between: format of the second product's input in the library's kernels.
    """
    layer, router = layer_of(case), Router.of(case)
    sizes = (case.hidden_size, case.intermediate_size)
    make.reserve("output", (2 * case.num_tokens, case.hidden_size), DType.FLOAT32)  # with its truth
    routed = routing.routing_inputs(case, make, router)
    made = weights.make(make, Drawn(layer, sizes, case.weight_dtype))
    tensors = {**routed, **x(case, make), **made}
    chosen = routing.choice_of(router, routed["routing_logits"], routed.get("routing_bias")).experts
    facts = routing.load(layer, chosen, case.num_experts)
    logits_bytes = routing.logits_dtype(case).bytes
    return Problem(
        tensors=tensors,
        reference=partial(routing.truth, router=router, layer=layer, weights=weights),
        work=work.documented(case, stored, logits_bytes, facts["active_experts"]),
        checks={
            "routing_replay_out": ChosenExperts(),
            "output": MixtureOutput(tolerance.for_mixture(between, sizes, case.input_dtype), "routing_replay_out"),
        },
        ranks=make.ranks,
        shown=_shown(case, tensors, stored, facts["active_experts"]),
        facts={**facts, **work.local(case, layer, chosen, tensors, facts["local_active_experts"])},
    )


def _shown(case: MoeFlags, tensors: dict[str, torch.Tensor], stored: str, active_experts: int) -> tuple[Shown, ...]:
    sizes = f"hidden={case.hidden_size}, intermediate={case.intermediate_size}"
    experts = f"experts={case.num_experts}, top_k={case.top_k}"
    named = {"nvfp4": "fp4"}.get(stored, stored)
    return (
        Shown(f"Configuration: tokens={case.num_tokens}, {sizes}, {experts}", level=1, as_info=True),
        Shown("routing_logits.shape", tensors["routing_logits"].shape),
        Shown("hidden_states.shape", tensors["x"].shape),
        Shown(f"gemm1_weights_{named}.shape", tensors["w1"].shape),
        Shown(f"gemm2_weights_{named}.shape", tensors["w2"].shape),
        Shown("num_active_experts", active_experts),
    )
