"""What the calls of TensorRT-LLM's three kernels share: limits, arguments, the order of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, capability_in, case_rule, package
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.formats.shuffle import interleave_halves, shuffle_rows
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.moe import hidden
from flashinfer_perf.routines.moe.flags import MoeFlags, activation_of, local_experts
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.router import Router
from flashinfer_perf.run.problem import Problem

BLACKWELL = "10.0 10.3 10.7"
"""What the kernels' binaries are for. The library lets 12.x pass, too, and finds no binary there."""
DOCUMENTED = "10.0 10.3"
MOST_CHOSEN = 32
MOST_GROUPS = 8
MOST_CHOSEN_GROUPS = 4
MOST_IN_A_GROUP = 32
MOST_IN_GROUPS = 512
MOST_OF_LLAMA4 = 128
FEW_EXPERTS = 384
"""Up to so many experts, grouped routing takes 8 a token; beyond, 22."""
TUNED_UP_TO = 8192
"""Tokens that the library's tuner measures by default."""


def most_chosen(case: MoeFlags) -> int:
    """The largest top_k of grouped routing."""
    return 8 if case.num_experts <= FEW_EXPERTS else 22


def is_grouped(case: MoeFlags) -> bool:
    return case.routing_method == "deepseek_v3" and (case.n_group or 1) > 1


LIMITS: tuple[Requirement, ...] = (
    case_rule(
        "top_k of 1 with llama4",
        lambda case: case.routing_method != "llama4" or (case.top_k == 1 and case.num_experts <= MOST_OF_LLAMA4),
        "TensorRT-LLM's kernel for llama4 takes a --top_k of 1 and 128 experts at most",
    ),
    case_rule(
        "top_k up to 32", lambda case: case.top_k <= MOST_CHOSEN, "TensorRT-LLM's routing takes a --top_k of 32 at most"
    ),
    case_rule(
        "in groups top_k up to 8, or 22 of more than 384 experts",
        lambda case: not is_grouped(case) or case.top_k <= most_chosen(case),
        "TensorRT-LLM's routing in groups takes a --top_k of 8 at most, 22 with more than 384 experts",
    ),
    case_rule(
        "topk_group up to 4",
        lambda case: (case.topk_group or 1) <= MOST_CHOSEN_GROUPS,
        "TensorRT-LLM's routing takes a --topk_group of 4 at most",
    ),
    case_rule(
        "up to 8 groups of 32 experts, 512 together, a multiple of 4",
        lambda case: (
            not is_grouped(case)
            or (
                case.n_group <= MOST_GROUPS
                and case.num_experts <= min(MOST_IN_A_GROUP * case.n_group, MOST_IN_GROUPS)
                and case.num_experts % 4 == 0
            )
        ),
        "TensorRT-LLM's routing takes 8 groups at most, with 32 experts each at most, a multiple of 4 and 512 together",
    ),
    case_rule(
        "bfloat16 output",
        lambda case: case.input_dtype is DType.BFLOAT16,
        "TensorRT-LLM's kernels write bfloat16 only; leave --input_dtype at bfloat16",
    ),
)
no_weights_on_input = case_rule(
    "no --use_routing_scales_on_input",
    lambda case: not case.use_routing_scales_on_input,
    "only the per-tensor kernels multiply their input by routing weights; leave --use_routing_scales_on_input away",
)


def takes_activations(*names: str) -> Requirement:
    listed = " or ".join(names)
    return case_rule(
        f"activation {listed}",
        lambda case: activation_of(case) in names,
        f"TensorRT-LLM's kernels of this format have the activation {listed}",
    )


def requires(*others: Requirement) -> tuple[Requirement, ...]:
    return (capability_in(BLACKWELL), package("flashinfer", extra="flashinfer"), *LIMITS, *others)


def call_arguments(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    """What all three calls take. Groups and scaling are those of deepseek_v3; other methods have none."""
    grouped = case.routing_method == "deepseek_v3"
    router, experts = Router.of(case), local_experts(case)
    device = problem["x"].device
    return {
        "routing_logits": problem["routing_logits"],
        "routing_bias": problem.tensors.get("routing_bias"),
        "num_experts": case.num_experts,
        "top_k": case.top_k,
        "n_group": router.n_group if grouped else None,
        "topk_group": router.topk_group if grouped else None,
        "intermediate_size": case.intermediate_size,
        "local_expert_offset": experts.start,
        "local_num_experts": len(experts),
        "routed_scaling_factor": router.scaling if grouped else None,
        "routing_method_type": int(flashinfer.fused_moe.RoutingMethodType[METHODS[case.routing_method]]),
        "do_finalize": True,
        "enable_pdl": case.enable_pdl,
        "activation_type": int(flashinfer.fused_moe.ActivationType[activation_of(case)]),
        "tune_max_num_tokens": max(TUNED_UP_TO, case.num_tokens),
        "routing_replay_out": torch.empty(case.num_tokens, case.top_k, dtype=torch.int16, device=device),
        "output": torch.empty(case.num_tokens, case.hidden_size, dtype=torch.bfloat16, device=device),
    }


METHODS = {
    "renormalize": "Renormalize",
    "deepseek_v3": "DeepSeekV3",
    "llama4": "Llama4",
    "renormalize_naive": "RenormalizeNaive",
    "topk": "TopK",
}
"""The library's names of the methods."""
WRITES = ("output", "routing_replay_out")


def each_expert(tensor: torch.Tensor, arrange: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The tensor with every expert's part arranged anew, one after the other: of all there is no further copy."""
    first = arrange(tensor[0])
    arranged = torch.empty(len(tensor), *first.shape, dtype=tensor.dtype, device=tensor.device)
    for index, part in enumerate(tensor):
        arranged[index] = arrange(part) if index else first
    return arranged


def first_rows(layer: Layer, rows: torch.Tensor) -> torch.Tensor:
    """An expert's first matrix, or its scales, in the order of kernels that fuse the activation."""
    return shuffle_rows(interleave_halves(rows) if layer.gated else rows)


def first_scales(layer: Layer, gate: torch.Tensor, between: float) -> dict[str, torch.Tensor]:
    """Factors on the first product of each expert here. Without a gate, the factor before the activation is the gate's.

    Args:
        gate: fp32, what makes values of the first product.
        between: what the second product's input is multiplied by before it is rounded.
    """
    return {"gate": gate, "value": gate * between if layer.gated else torch.full_like(gate, between)}


def fp4_weights(layer: Layer, tensors: Mapping[str, torch.Tensor], x_global: float) -> dict[str, Any]:
    """What the kernels read of experts' weights in NVFP4.

    Args:
        tensors: w1, w1_scale, w1_global, and those of w2.
        x_global: what hidden states were multiplied by before they were rounded.
    """

    def first(rows: torch.Tensor) -> torch.Tensor:
        return first_rows(layer, rows)

    gate = 1 / (tensors["w1_global"] * x_global)
    factors = first_scales(layer, gate, hidden.BETWEEN_FP4)
    scales = {
        "gemm1": each_expert(tensors["w1_scale"], lambda rows: swizzle_128x4(first(rows))),
        "gemm2": each_expert(tensors["w2_scale"], lambda rows: swizzle_128x4(shuffle_rows(rows))),
    }
    return {
        "gemm1_weights": each_expert(tensors["w1"], first),
        "gemm1_weights_scale": scales["gemm1"].view(torch.float8_e4m3fn),
        "gemm2_weights": each_expert(tensors["w2"], shuffle_rows),
        "gemm2_weights_scale": scales["gemm2"].view(torch.float8_e4m3fn),
        "output1_scale_scalar": factors["value"],
        "output1_scale_gate_scalar": factors["gate"],
        "output2_scale_scalar": 1 / (tensors["w2_global"] * hidden.BETWEEN_FP4),
        # the kernels with a gate read a factor in its sigmoid, which those without must not get
        "gemm1_alpha": torch.ones_like(gate) if layer.gated else None,
        **dict.fromkeys(("gemm1_bias", "gemm1_beta", "gemm1_clamp_limit", "gemm2_bias")),
    }
