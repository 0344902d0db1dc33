"""Flags of the MoE family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag, not_a_choice
from flashinfer_perf.routines.moe.skew import parse_skew

SIXTEEN_BITS = (DType.BFLOAT16, DType.FLOAT16)
ROUTING_METHODS = ("renormalize", "deepseek_v3", "llama4", "renormalize_naive", "topk")
GATED = ("Swiglu", "Geglu", "SwigluBias")
"""Activations of two halves, up and gate; the others take one."""
ACTIVATIONS = ("Gelu", "Relu", "Silu", *GATED, "Relu2", "Identity")
OF_GATED_ACT = {"swiglu": "Swiglu", "geglu": "Geglu"}


def parse_activation(text: str) -> str:
    """An activation's name, in any case."""
    found = {name.lower(): name for name in ACTIVATIONS}.get(text.lower())
    if found is None:
        raise ValueError(not_a_choice("activation", text, ACTIVATIONS))
    return found


@dataclass(frozen=True)
class MoeFlags:
    """In the order of upstream's Namespace line, then what later versions added."""

    family: ClassVar[str] = "moe"

    num_tokens: int = flag(minimum=1, help="Number of tokens.")
    hidden_size: int = flag(minimum=1, help="Hidden dimension size.")
    num_experts: int = flag(minimum=1, help="Number of experts over all ranks.")
    top_k: int = flag(minimum=1, help="Number of experts that each token goes to.")
    input_dtype: DType = flag(
        DType.BFLOAT16, choices=SIXTEEN_BITS, help="Format of the hidden states before they are quantised."
    )
    intermediate_size: int = flag(minimum=1, help="Intermediate size of an expert.")
    n_group: int | None = flag(
        None, minimum=0, help="Groups that experts are in; with deepseek_v3 only, which has 1 by default."
    )
    topk_group: int | None = flag(
        None, minimum=0, help="Groups that a token chooses from; with deepseek_v3 only, which has 1 by default."
    )
    routed_scaling_factor: float = flag(2.5, above=0, help="Factor on routing weights under deepseek_v3.")
    local_expert_offset: int = flag(0, minimum=0, help="The first of the experts that are here.")
    local_num_experts: int | None = flag(
        None,
        minimum=0,
        help="How many experts are here; by default (and for 0) all from the offset on.",
    )
    routing_method: str = flag(
        "deepseek_v3", choices=ROUTING_METHODS, help="How logits become experts and their weights."
    )
    use_shuffled_weight: bool = flag(False, help="Give the library weights with shuffled rows.")
    weight_layout: int = flag(
        0, choices=(0, 1, 2), help="Layout of the library's weights: 0 MajorK, 1 MajorMn, 2 BlockMajorK."
    )
    use_routing_bias: bool = flag(
        False, help="A bias on the scores that select experts, which balances loads; zeros without it."
    )
    use_routing_scales_on_input: bool = flag(
        False, help="Routing weights multiply what goes into the activation, not what an expert gives."
    )
    weight_dtype: DType = flag(
        DType.BFLOAT16, choices=SIXTEEN_BITS, help="Format of the weights before they are quantised."
    )
    activation_type: str = flag(
        "Swiglu",
        aliases=("--activation-type",),
        parse=parse_activation,
        metavar="NAME",
        help=f"Activation between the products: {', '.join(ACTIVATIONS)}; in any case.",
    )
    gated_act: str | None = flag(
        None,
        since=Since.OURS,  # documented, and not in the parser: its abbreviations mean other flags there
        choices=tuple(OF_GATED_ACT),
        help="The gated activation by its older flag; stands for --activation-type.",
    )
    autotune: bool = flag(
        False,
        unheeded="backend does not support autotune",
        help="Let the library measure its tactics first, outside the timed calls.",
    )
    cutlass_variant: str = flag(
        "base", choices=("base", "fp8", "nvfp4"), help="Unquantised, FP8 with a scale per tensor, or NVFP4."
    )
    quantized_input: bool = flag(False, help="Give NVFP4 hidden states; else the kernel quantises them (nvfp4 only).")
    tp_size: int = flag(1, minimum=1, help="Ranks that share each expert's intermediate size.")
    tp_rank: int = flag(0, minimum=0, help="Which of them this is.")
    ep_size: int = flag(1, minimum=1, help="Ranks that share the experts.")
    ep_rank: int = flag(0, minimum=0, help="Which of them this is.")
    backends: tuple[str, ...] = backends_flag(since=Since.OURS)
    enable_pdl: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Use programmatic dependent launch.")
    routing_skew: str = flag(
        "uniform",
        since=Since.OURS,
        parse=parse_skew,
        metavar="SKEW",
        help="Which experts tokens choose: uniform, zipf:S (the r-th most popular has a weight of 1/r^S), or file:PATH "
        "with the experts of a token on each line.",
    )


def activation_of(case: MoeFlags) -> str:
    """The activation, whichever flag named it."""
    return OF_GATED_ACT[case.gated_act] if case.gated_act else case.activation_type


def is_gated(case: MoeFlags) -> bool:
    return activation_of(case) in GATED


def local_experts(case: MoeFlags) -> range:
    """Global numbers of the experts that are here, in the TensorRT-LLM routines."""
    first = case.local_expert_offset
    return range(first, first + (case.local_num_experts or case.num_experts - first))
