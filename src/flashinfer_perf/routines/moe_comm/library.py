"""The experts between dispatch and combine by FlashInfer: TensorRT-LLM's kernels, told which experts rows go to."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import capability_in, case_rule, package
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.moe import trtllm_call
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.run.problem import Problem

ACTIVATION, METHOD = "Swiglu", "Renormalize"
"""Of the library's names. No routing is left to do, so that any method is as good."""
MULTIPLE = 128
"""Of both sizes: rows are shuffled, and scales lie, in tiles of as many."""
MOST_EXPERTS = 2048
"""That the library's routing is compiled for."""
MAJOR_K = 0
"""Of the library's layouts of FP8 weights: as they are."""
WEIGHTS = {
    "w1": "gemm1_weights",
    "w1_scale": "gemm1_weights_scale",
    "w2": "gemm2_weights",
    "w2_scale": "gemm2_weights_scale",
}
"""A call's names of them, and the library's."""

NEEDS = (
    capability_in(trtllm_call.BLACKWELL),
    package("flashinfer", extra="flashinfer"),
    case_rule(
        "bfloat16, sizes divisible by 128, top_k up to 32 and below num_experts, up to 2048, which 4 divides",
        lambda case: (
            case.input_dtype is DType.BFLOAT16
            and case.hidden_size % MULTIPLE == 0
            and case.intermediate_size % MULTIPLE == 0
            and case.top_k <= trtllm_call.MOST_CHOSEN
            and case.top_k < case.num_experts <= MOST_EXPERTS
            and case.num_experts % 4 == 0
        ),
    ),
)


def runs(case: MoeCommFlags, machine: Machine) -> bool:
    """Whether the library has kernels for a case with experts; where it has none, this project's take their place."""
    return not any(need.unmet(machine, case) for need in NEEDS)


class ByLibrary:
    """All that does not depend on a call's rows is prepared here. A call gets ``weights``, or copies of them.

    Args:
        factor: what hidden states were multiplied by before they were rounded.
        numbers: of the experts that are here.
    """

    name = "trtllm"

    def __init__(self, case: MoeCommFlags, problem: Problem, factor: float, numbers: range) -> None:
        self._fp4 = case.quant_dtype == "nvfp4"
        own = self._of_fp4(problem, factor, numbers) if self._fp4 else self._of_fp8(problem)
        self.weights = {name: own.pop(argument) for name, argument in WEIGHTS.items()}
        self._arguments = {**self._common(case, problem, numbers), **own}
        self._missing = case.num_experts
        self._elsewhere = numbers.stop % case.num_experts

    def __call__(self, rows: tuple[torch.Tensor, ...], output: torch.Tensor, **weights: torch.Tensor) -> None:
        """Slots without a token are sent to an expert that is not here, for which nothing is added.

        The library reads FP8's scales column by column, and rows arrive with theirs.
        """
        ids, routing, hidden, scales = rows
        chosen = (torch.where(ids == self._missing, self._elsewhere, ids), routing)
        of_weights = {argument: weights[name] for name, argument in WEIGHTS.items()}
        own = {"topk_ids": chosen, "hidden_states": hidden, "output": output, **of_weights}
        moe = flashinfer.fused_moe
        if self._fp4:
            scales = scales.view(torch.float8_e4m3fn)
            moe.trtllm_fp4_block_scale_routed_moe(**self._arguments, **own, hidden_states_scale=scales)
        else:
            moe.trtllm_fp8_block_scale_routed_moe(**self._arguments, **own, hidden_states_scale=scales.T.contiguous())

    def _of_fp4(self, problem: Problem, factor: float, numbers: range) -> dict[str, Any]:
        arranged = trtllm_call.fp4_weights(Layer(ACTIVATION, numbers), problem.tensors, factor)
        return {**arranged, "hidden_states_scale_layout": flashinfer.SfLayout.layout_linear}

    def _of_fp8(self, problem: Problem) -> dict[str, Any]:
        as_they_are = {argument: problem.tensors[name] for name, argument in WEIGHTS.items()}
        return {**as_they_are, "use_shuffled_weight": False, "weight_layout": MAJOR_K}

    def _common(self, case: MoeCommFlags, problem: Problem, numbers: range) -> dict[str, Any]:
        return {
            "routing_bias": None,
            "num_experts": case.num_experts,
            "top_k": case.top_k,
            "n_group": None,
            "topk_group": None,
            "intermediate_size": case.intermediate_size,
            "local_expert_offset": numbers.start,
            "local_num_experts": len(numbers),
            "routed_scaling_factor": None,
            "routing_method_type": int(flashinfer.fused_moe.RoutingMethodType[METHOD]),
            "activation_type": int(flashinfer.fused_moe.ActivationType[ACTIVATION]),
            "tune_max_num_tokens": max(trtllm_call.TUNED_UP_TO, problem.ranks.size * case.num_tokens),
        }
