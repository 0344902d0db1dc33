"""Routed experts in FP8 with one scale for every matrix and one for the hidden states (Llama 4)."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, case_rule
from flashinfer_perf.core.routine import routine
from flashinfer_perf.formats.shuffle import shuffle_rows
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.gemm import tuning
from flashinfer_perf.routines.moe import hidden, launches, trtllm, trtllm_call
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.weights import FP8_TENSOR
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

IGNORED = ("autotune", "enable_pdl")


@routine("trtllm_fp8_per_tensor_scale_moe", flags=MoeFlags, uses=trtllm.USES, facts=trtllm.FACTS, rules=trtllm.RULES)
def trtllm_fp8_per_tensor_scale_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """MOE with FP8 quantized weights and per-tensor scaling."""
    return trtllm.problem(case, make, hidden.fp8_tensor, FP8_TENSOR, "fp8", DType.FP8_E4M3)


LIMITS: tuple[Requirement, ...] = (
    trtllm_call.takes_activations("Swiglu", "Geglu", "Relu2", "Identity"),
    case_rule(
        "--use_routing_scales_on_input with llama4 only",
        lambda case: not case.use_routing_scales_on_input or case.routing_method == "llama4",
        "TensorRT-LLM's kernels have routing weights for their input with --routing_method llama4 only",
    ),
    case_rule(
        "hidden_size and intermediate_size divisible by 128",
        lambda case: case.hidden_size % 128 == 0 and case.intermediate_size % 128 == 0,
        "TensorRT-LLM's weights are shuffled for tiles of 128 rows: hidden_size and intermediate_size must be "
        "divisible by 128",
    ),
)


@trtllm_fp8_per_tensor_scale_moe.backend(
    "trtllm", requires=trtllm_call.requires(*LIMITS), documented=trtllm_call.DOCUMENTED, state=tuning.tuner
)
def library(case: MoeFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, with weights interleaved and shuffled for them."""
    layer = trtllm.layer_of(case)
    first = trtllm_call.first_scales(layer, problem["w1_scale"] * problem["x_scale"], hidden.BETWEEN_FP8)
    kwargs = {
        **trtllm_call.call_arguments(case, problem),
        "hidden_states": problem["x"],
        "gemm1_weights": trtllm_call.each_expert(problem["w1"], partial(trtllm_call.first_rows, layer)),
        "output1_scales_scalar": first["value"],
        "output1_scales_gate_scalar": first["gate"],
        "gemm2_weights": trtllm_call.each_expert(problem["w2"], shuffle_rows),
        "output2_scales_scalar": problem["w2_scale"] / hidden.BETWEEN_FP8,
        "use_routing_scales_on_input": case.use_routing_scales_on_input,
    }
    launch = Launch(flashinfer.fused_moe.trtllm_fp8_per_tensor_scale_moe, kwargs=kwargs, mutates=trtllm_call.WRITES)
    return tuning.tuned(case, launch, named="FP8 per-tensor scale MoE")


@trtllm_fp8_per_tensor_scale_moe.backend("triton", requires=launches.triton(lambda case: "FP8_TENSOR"), ignores=IGNORED)
def triton_kernels(case: MoeFlags, problem: Problem) -> Launch:
    """This project's Triton kernels."""
    return launches.by_triton(case, problem, trtllm.layer_of(case), "FP8_TENSOR")


@trtllm_fp8_per_tensor_scale_moe.backend("torch", ignores=IGNORED)
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """PyTorch, an expert at a time, in 16 bits."""
    return launches.by_torch(case, problem, trtllm.layer_of(case))
