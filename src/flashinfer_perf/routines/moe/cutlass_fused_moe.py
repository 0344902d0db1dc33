"""Experts for tokens that are routed already: unquantised, in FP8 with a scale per tensor, or in NVFP4; of a layer that
is split over ranks, by experts and by the intermediate size, the part of one. What a rank gives is its share of a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, capability_in, case_rule, on_generations, package
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.formats import nvfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import tuning
from flashinfer_perf.routines.moe import eager, hidden, launches, routing, skew, trtllm, trtllm_call, work
from flashinfer_perf.routines.moe import weights as formats
from flashinfer_perf.routines.moe.flags import MoeFlags, activation_of
from flashinfer_perf.routines.moe.layer import Layer, mixture
from flashinfer_perf.routines.moe.router import Router
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

USES = (
    "num_tokens",
    "hidden_size",
    "num_experts",
    "top_k",
    "input_dtype",
    "intermediate_size",
    "activation_type",
    "gated_act",
    "autotune",
    "cutlass_variant",
    "quantized_input",
    "tp_size",
    "tp_rank",
    "ep_size",
    "ep_rank",
    "enable_pdl",
    "routing_skew",
)
RULES = (
    *trtllm.COMMON_RULES,
    Rule(lambda case: case.tp_rank < case.tp_size, "tp_rank ({tp_rank}) must be below tp_size ({tp_size})"),
    Rule(lambda case: case.ep_rank < case.ep_size, "ep_rank ({ep_rank}) must be below ep_size ({ep_size})"),
    Rule(
        lambda case: case.intermediate_size % case.tp_size == 0,
        "tp_size ({tp_size}) must divide intermediate_size ({intermediate_size})",
    ),
    Rule(
        lambda case: case.num_experts % case.ep_size == 0,
        "ep_size ({ep_size}) must divide num_experts ({num_experts})",
    ),
    Rule(
        lambda case: (
            case.cutlass_variant != "nvfp4"
            or (case.hidden_size % nvfp4.BLOCK == 0 and part_of(case) % nvfp4.BLOCK == 0)
        ),
        "hidden_size ({hidden_size}) and a rank's part of intermediate_size ({intermediate_size}) must be divisible by "
        "16, the columns that share a scale",
    ),
    Rule(
        lambda case: not case.quantized_input or case.cutlass_variant == "nvfp4",
        "--quantized_input is for --cutlass_variant nvfp4, not {cutlass_variant}; leave it away",
    ),
)


def part_of(case: MoeFlags) -> int:
    """The intermediate size of this rank."""
    return case.intermediate_size // case.tp_size


class Variant(NamedTuple):
    """Formats of a variant.

    Attributes:
        stored: the documents' name.
        between: of the second product's input; None for the 16-bit format.
        kernels: name of the format of this project's kernels.
    """

    x: Callable[[MoeFlags, TensorFactory], dict[str, torch.Tensor]]
    weights: formats.Format
    stored: str
    between: DType | None
    kernels: str


VARIANTS = {
    "base": Variant(hidden.plain, formats.SIXTEEN_BITS, "base", None, "BF16"),
    "fp8": Variant(hidden.fp8_tensor, formats.FP8_TENSOR, "fp8", DType.FP8_E4M3, "FP8_TENSOR"),
    "nvfp4": Variant(hidden.fp4, formats.NVFP4, "nvfp4", DType.NVFP4, "NVFP4"),
}


def layer_of(case: MoeFlags) -> Layer:
    count = case.num_experts // case.ep_size
    return Layer(activation_of(case), range(case.ep_rank * count, (case.ep_rank + 1) * count))


@routine("cutlass_fused_moe", flags=MoeFlags, uses=USES, facts=trtllm.FACTS, rules=RULES)
def cutlass_fused_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """CUTLASS fused MoE (base/fp8/nvfp4 variants with optional TP/EP)."""
    variant, layer = VARIANTS[case.cutlass_variant], layer_of(case)
    make.reserve("output", (2 * case.num_tokens, case.hidden_size), DType.FLOAT32)  # with its truth
    routed = routed_tokens(case, make)
    sizes = (case.hidden_size, case.intermediate_size)
    drawn = formats.Drawn(layer, sizes, case.input_dtype, case.tp_size, case.tp_rank)
    made = variant.weights.make(make, drawn)
    x = variant.x(case, make)
    if not case.quantized_input and case.cutlass_variant == "nvfp4":
        x = {"x": x["x"]}
    tensors = {**routed, **x, **made}
    chosen = routed["experts"].long()
    facts = routing.load(layer, chosen, case.num_experts)
    between, sizes = variant.between or case.input_dtype, (case.hidden_size, part_of(case))
    added = case.top_k - 1  # some of the library's tactics add experts' results where the output is, in its format
    return Problem(
        tensors=tensors,
        reference=partial(truth, layer=layer, format=variant.weights),
        work=work.documented(case, variant.stored, case.input_dtype.bytes, facts["active_experts"]),
        checks={"output": tolerance.for_mixture(between, sizes, case.input_dtype, more_roundings=added)},
        ranks=make.ranks,
        shown=(
            Shown("x.shape", tensors["x"].shape),
            Shown("w31_weight.shape", torch.Size((case.num_experts, *drawn.whole.shapes["w1"]))),
            Shown("w2_weight.shape", torch.Size((case.num_experts, *drawn.whole.shapes["w2"]))),
            Shown("num_active_experts", facts["active_experts"]),
        ),
        facts={**facts, **work.local(case, layer, chosen, tensors, facts["local_active_experts"])},
    )


def routed_tokens(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """``experts`` (tokens, top_k) int32 and ``weights`` fp32: a softmax, its largest, renormalised."""
    router = Router("renormalize_naive", case.top_k)
    logits = skew.skewed_logits(make, case.routing_skew, case.num_tokens, case.num_experts, case.top_k)
    experts = router.select(router.scores(logits))
    chosen = {"experts": experts.to(torch.int32), "weights": router.weights(logits, experts).float()}
    return {name: tensor.to(make.device) for name, tensor in chosen.items()}


def truth(
    *,
    layer: Layer,
    format: formats.Format,
    experts: torch.Tensor,
    weights: torch.Tensor,
    **tensors: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The mixture over the dequantised weights, of the experts here and their part of the intermediate size."""
    return {"output": mixture(layer, hidden.decoded(tensors), experts.long(), weights, format.expert(tensors))}


def divisible(variant: str, by: int, why: str) -> Requirement:
    return case_rule(
        f"{variant}: hidden_size and a rank's part of intermediate_size divisible by {by}",
        lambda case: case.cutlass_variant != variant or (case.hidden_size % by == 0 and part_of(case) % by == 0),
        f"{why}: hidden_size and a rank's part of intermediate_size must be divisible by {by}",
    )


CAPABILITIES = "8.9 9.0 10.0 10.3 10.7 11.0 12.0 12.1"
"""For which the library compiles the kernels."""
LIMITS: tuple[Requirement, ...] = (
    capability_in(CAPABILITIES),
    package("flashinfer", extra="flashinfer"),
    on_generations(
        (8, 9),
        case_rule(
            "variant base or fp8",
            lambda case: case.cutlass_variant != "nvfp4",
            "tensor cores multiply NVFP4 from compute capability 10.0 on; use --cutlass_variant base or fp8",
        ),
    ),
    divisible("base", 8, "CUTLASS reads rows in 16 bytes"),
    divisible("fp8", 16, "CUTLASS reads rows in 16 bytes"),
    divisible("nvfp4", 64, "CUTLASS reads block scales in tiles of four blocks of 16"),
)


@cutlass_fused_moe.backend("cutlass", requires=LIMITS, documented=trtllm_call.DOCUMENTED, state=tuning.tuner)
def library(case: MoeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    wide = {"input": problem["x"], "fc1_expert_weights": problem["w1"], "fc2_expert_weights": problem["w2"]}
    kwargs = {
        **wide,
        "quant_scales": [],
        "input_sf": None,
        "token_selected_experts": problem["experts"],
        "token_final_scales": problem["weights"],
        "output_dtype": case.input_dtype.torch,
        "tp_size": case.tp_size,
        "tp_rank": case.tp_rank,
        "ep_size": case.ep_size,
        "ep_rank": case.ep_rank,
        "output": room(case, problem),
        "enable_pdl": case.enable_pdl,
        "activation_type": flashinfer.fused_moe.ActivationType[activation_of(case)],
        "tune_max_num_tokens": max(trtllm_call.TUNED_UP_TO, case.num_tokens),
        **ARGUMENTS[case.cutlass_variant](case, problem),
    }
    launch = Launch(flashinfer.fused_moe.cutlass_fused_moe, kwargs=kwargs, mutates=("output",))
    return tuning.tuned(case, launch, named="CUTLASS fused MoE")


def for_base(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    return {}


def for_fp8(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    """Scales of the first product, on the second one's input before it is rounded, of the second, of the input."""
    x_scale = problem["x_scale"]
    between = torch.full((), hidden.BETWEEN_FP8, device=x_scale.device)
    return {
        "quant_scales": [problem["w1_scale"] * x_scale, between, problem["w2_scale"] / between, x_scale.reshape(())]
    }


def for_nvfp4(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    """For each product: its input's global scale, block scales in tiles, and what undoes both global scales."""
    scales = []
    for name, given in (("w1", hidden.GLOBAL_SCALE), ("w2", hidden.BETWEEN_FP4)):
        swizzled = trtllm_call.each_expert(problem[f"{name}_scale"], swizzle_128x4)
        of_input = torch.full((), given, device=swizzled.device)
        scales += [of_input, swizzled.view(torch.int32), 1 / (problem[f"{name}_global"] * of_input)]
    arguments: dict[str, Any] = {"quant_scales": scales}
    arguments["fc1_expert_weights"] = problem["w1"].view(torch.int64)
    arguments["fc2_expert_weights"] = problem["w2"].view(torch.int64)
    if case.quantized_input:
        arguments["input"] = problem["x_packed"]
        arguments["input_sf"] = swizzle_128x4(problem["x_scale"])
        arguments["swizzled_input_sf"] = True
    return arguments


ARGUMENTS = {"base": for_base, "fp8": for_fp8, "nvfp4": for_nvfp4}


def room(case: MoeFlags, problem: Problem) -> torch.Tensor:
    return torch.empty(problem["x"].shape, dtype=case.input_dtype.torch, device=problem["x"].device)


IGNORED = ("autotune", "enable_pdl", "quantized_input")
TAKEN = ("experts", "weights", "x", "w1", "w2", *launches.SCALES)


def arguments(case: MoeFlags, problem: Problem) -> dict[str, Any]:
    """Of torch's call and Triton's."""
    names = (*TAKEN, "x_scale") if case.cutlass_variant == "fp8" else TAKEN
    given = {name: tensor for name, tensor in problem.tensors.items() if name in names}
    return {**given, "output": room(case, problem)}


def kernels_of(case: MoeFlags) -> str:
    return VARIANTS[case.cutlass_variant].kernels


@cutlass_fused_moe.backend("triton", requires=launches.triton(kernels_of), ignores=IGNORED)
def triton_kernels(case: MoeFlags, problem: Problem) -> Launch:
    """This project's Triton kernels; NVFP4 weights meet 16-bit hidden states."""
    plan = launches.planned(case, problem, layer_of(case), kernels_of(case))
    kwargs = {**arguments(case, problem), **launches.weights_of(plan), "plan": plan}
    return Launch(launches.mixed_by_triton, kwargs=kwargs, mutates=("output",))


@cutlass_fused_moe.backend("torch", ignores=IGNORED)
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """PyTorch, an expert at a time, in 16 bits."""
    kwargs = {**arguments(case, problem), "layer": layer_of(case)}
    return Launch(eager.mix, kwargs=kwargs, mutates=("output",), host_sync=True, no_graph=eager.NO_GRAPH)
