"""FlashInfer's CUTLASS kernels on NVFP4 weights; they quantise the activations themselves."""

from __future__ import annotations

from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.moe_tool.contest import room
from flashinfer_perf.moe_tool.vllm import swizzled
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


def cutlass_fused_moe(problem: Problem) -> Launch:
    """With global scales of 1 for activations, as in vLLM's benchmark; the dequantisation scales undo the weights'."""
    from flashinfer.fused_moe import ActivationType

    one = torch.ones((), device=problem["x"].device)
    scales = [
        one,
        swizzled(problem["w1_scale"]).view(torch.int32),
        1 / problem["w1_global"],
        one,
        swizzled(problem["w2_scale"]).view(torch.int32),
        1 / problem["w2_global"],
    ]
    kwargs = {
        "input": problem["x"],
        "token_selected_experts": problem["topk_ids"],
        "token_final_scales": problem["topk_weights"],
        "fc1_expert_weights": problem["w1"].view(torch.int64),
        "fc2_expert_weights": problem["w2"].view(torch.int64),
        "output_dtype": torch.float16,
        "quant_scales": scales,
        "output": room(problem),
        "enable_pdl": False,
        "activation_type": ActivationType.Swiglu,
    }
    return Launch(flashinfer.fused_moe.cutlass_fused_moe, kwargs=kwargs, mutates=("output",))
