"""Routed experts in FP8 with a scale for every 128 x 128 of weights and every 128 columns of a token (DeepSeek-V3)."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, case_rule
from flashinfer_perf.core.routine import routine
from flashinfer_perf.formats.shuffle import NARROW_BLOCK, block_major, shuffle_rows
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import tuning
from flashinfer_perf.routines.moe import hidden, launches, trtllm, trtllm_call
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.routines.moe.weights import FP8_BLOCK, TILE
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

BLOCK_MAJOR = 2
IGNORED = ("use_shuffled_weight", "weight_layout", "autotune", "enable_pdl")


@routine(
    "trtllm_fp8_block_scale_moe",
    flags=MoeFlags,
    uses=(*trtllm.USES, "use_shuffled_weight", "weight_layout"),
    facts=trtllm.FACTS,
    rules=(*trtllm.RULES, trtllm.divisible(TILE[0], "the rows and columns that share a scale")),
)
def trtllm_fp8_block_scale_moe(case: MoeFlags, make: TensorFactory) -> Problem:
    """MOE with FP8 quantized weights and block-wise scaling."""
    return trtllm.problem(case, make, hidden.fp8_block, FP8_BLOCK, "fp8", DType.FP8_E4M3)


LIMITS: tuple[Requirement, ...] = (
    trtllm_call.no_weights_on_input,
    trtllm_call.takes_activations("Swiglu"),
    case_rule(
        "num_experts divisible by 4 and above top_k",
        lambda case: case.num_experts % 4 == 0 and case.num_experts > case.top_k,
        "FlashInfer's FP8 block-scale MoE needs a --num_experts divisible by 4 and above --top_k",
    ),
    case_rule(
        "with deepseek_v3 top_k up to 8, or 22 of more than 384 experts",
        lambda case: case.routing_method != "deepseek_v3" or case.top_k <= trtllm_call.most_chosen(case),
        "FlashInfer's FP8 block-scale MoE takes a --top_k of 8 at most with deepseek_v3, 22 with more than 384 experts",
    ),
    case_rule(
        "top_k below the experts of the chosen groups",
        lambda case: (
            case.routing_method != "deepseek_v3"
            or case.top_k < (case.topk_group or 1) * case.num_experts // (case.n_group or 1)
        ),
        "FlashInfer's FP8 block-scale MoE needs more experts in the chosen groups than --top_k",
    ),
    case_rule(
        "weight_layout 0 or 2",
        lambda case: case.weight_layout in (0, BLOCK_MAJOR),
        "FlashInfer's FP8 block-scale MoE reads no weights in MajorMn; use --weight_layout 0 or 2",
    ),
    case_rule(
        "weight_layout 2 with --use_shuffled_weight",
        lambda case: case.weight_layout != BLOCK_MAJOR or case.use_shuffled_weight,
        "FlashInfer's kernels read BlockMajorK with shuffled rows only; add --use_shuffled_weight",
    ),
)


@trtllm_fp8_block_scale_moe.backend(
    "trtllm", requires=trtllm_call.requires(*LIMITS), documented=trtllm_call.DOCUMENTED, state=tuning.tuner
)
def library(case: MoeFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, with weights in the layout that --weight_layout and --use_shuffled_weight name."""
    kwargs = {
        **trtllm_call.call_arguments(case, problem),
        "hidden_states": problem["x"],
        "hidden_states_scale": problem["x_scale"].T.contiguous(),
        "gemm1_weights": arranged(case, problem["w1"]),
        "gemm1_weights_scale": problem["w1_scale"],
        "gemm2_weights": arranged(case, problem["w2"]),
        "gemm2_weights_scale": problem["w2_scale"],
        "use_shuffled_weight": case.use_shuffled_weight,
        "weight_layout": case.weight_layout,
    }
    launch = Launch(flashinfer.fused_moe.trtllm_fp8_block_scale_moe, kwargs=kwargs, mutates=trtllm_call.WRITES)
    return tuning.tuned(case, launch, named="FP8 block scale MoE")


def arranged(case: MoeFlags, weights: torch.Tensor) -> torch.Tensor:
    """Weights as the flags say, scales stay where they are: rows are shuffled inside of a scale's 128."""

    def one(expert: torch.Tensor) -> torch.Tensor:
        rows = shuffle_rows(expert, NARROW_BLOCK) if case.use_shuffled_weight else expert
        return block_major(rows) if case.weight_layout == BLOCK_MAJOR else rows

    plain = not case.use_shuffled_weight and case.weight_layout != BLOCK_MAJOR
    return weights if plain else trtllm_call.each_expert(weights, one)


@trtllm_fp8_block_scale_moe.backend("triton", requires=launches.triton(lambda case: "FP8_BLOCK"), ignores=IGNORED)
def triton_kernels(case: MoeFlags, problem: Problem) -> Launch:
    """This project's Triton kernels."""
    return launches.by_triton(case, problem, trtllm.layer_of(case), "FP8_BLOCK")


@trtllm_fp8_block_scale_moe.backend("torch", ignores=IGNORED)
def torch_eager(case: MoeFlags, problem: Problem) -> Launch:
    """PyTorch, an expert at a time, in 16 bits."""
    return launches.by_torch(case, problem, trtllm.layer_of(case))
