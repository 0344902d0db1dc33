"""Routed experts in NVFP4: blocks of 16 with an e4m3 scale, and a global scale for every matrix."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, case_rule
from flashinfer_perf.core.routine import routine
from flashinfer_perf.formats import nvfp4
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import tuning
from flashinfer_perf.routines.moe import hidden, launches, trtllm, trtllm_call
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.weights import NVFP4
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

IGNORED = ("autotune", "enable_pdl")


@routine(
    "trtllm_fp4_block_scale_moe",
    flags=MoeFlags,
    uses=trtllm.USES,
    facts=trtllm.FACTS,
    rules=(*trtllm.RULES, trtllm.divisible(nvfp4.BLOCK, "the columns that share a scale")),
)
def trtllm_fp4_block_scale_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """MOE with FP4 quantized weights and block-wise scaling."""
    return trtllm.problem(case, make, hidden.fp4, NVFP4, "nvfp4", DType.NVFP4)


LIMITS: tuple[Requirement, ...] = (
    trtllm_call.no_weights_on_input,
    trtllm_call.takes_activations("Swiglu", "Geglu", "Relu2", "Identity"),
    case_rule(
        "hidden_size and intermediate_size divisible by 128",
        lambda case: case.hidden_size % 128 == 0 and case.intermediate_size % 128 == 0,
        "TensorRT-LLM's weights are shuffled, and their scales swizzled, in tiles of 128 rows: hidden_size and "
        "intermediate_size must be divisible by 128",
    ),
)


@trtllm_fp4_block_scale_moe.backend(
    "trtllm", requires=trtllm_call.requires(*LIMITS), documented=trtllm_call.DOCUMENTED, state=tuning.tuner
)
def library(case: MoeFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels on NVFP4 hidden states, with weights interleaved, shuffled and swizzled for them."""
    kwargs = {
        **trtllm_call.call_arguments(case, problem),
        "hidden_states": problem["x_packed"],
        "hidden_states_scale": problem["x_scale"].view(torch.float8_e4m3fn),
        "hidden_states_scale_layout": flashinfer.SfLayout.layout_linear,
        **trtllm_call.fp4_weights(trtllm.layer_of(case), problem.tensors, hidden.GLOBAL_SCALE),
    }
    launch = Launch(flashinfer.fused_moe.trtllm_fp4_block_scale_moe, kwargs=kwargs, mutates=trtllm_call.WRITES)
    return tuning.tuned(case, launch, named="FP4 block scale MoE")


@trtllm_fp4_block_scale_moe.backend("triton", requires=launches.triton(lambda case: "NVFP4"), ignores=IGNORED)
def triton_kernels(case: MoeFlags, problem: Problem) -> Launch:
    """This project's Triton kernels on 16-bit hidden states, decoding NVFP4 weights on the way."""
    return launches.by_triton(case, problem, trtllm.layer_of(case), "NVFP4")


@trtllm_fp4_block_scale_moe.backend("torch", ignores=IGNORED)
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """PyTorch, an expert at a time, in 16 bits."""
    return launches.by_torch(case, problem, trtllm.layer_of(case))
