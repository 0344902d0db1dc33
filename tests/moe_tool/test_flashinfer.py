"""The call of FlashInfer's CUTLASS kernels, which no machine of ours can run in NVFP4."""

from __future__ import annotations

import torch

from flashinfer_perf.formats.scale_layout import swizzle_128x4
from tests.contract import contract
from tests.moe_tool.layers import BLACKWELL, made


def test_weights_scales_and_routing_are_what_the_library_declares():
    flags, problem, routine = made(1, BLACKWELL)
    with contract("flashinfer.fused_moe.cutlass_fused_moe", returns=lambda **call: call["output"]) as kernel:
        routine.backends["flashinfer"].prepare(flags, problem)()
    call = kernel.call
    assert call["input"] is problem["x"]
    assert call["input"].dtype is torch.float16
    assert "input_sf" not in call or call["input_sf"] is None
    assert (call["token_selected_experts"].dtype, call["token_final_scales"].dtype) == (torch.int32, torch.float32)
    assert (call["fc1_expert_weights"].shape, call["fc1_expert_weights"].dtype) == ((6, 256, 8), torch.int64)
    assert call["fc2_expert_weights"].shape == (6, 128, 8)
    assert (call["output_dtype"], call["output"].shape) == (torch.float16, (9, 128))
    assert call["enable_pdl"] is False
    of_x, scales, undo, between, scales2, undo2 = call["quant_scales"]
    assert of_x.ndim == between.ndim == 0
    assert (scales.dtype, scales.shape, scales2.shape) == (torch.int32, (6, 256, 2), (6, 128, 2))
    assert torch.equal(scales[4].view(torch.uint8), swizzle_128x4(problem["w1_scale"][4]))
    torch.testing.assert_close(undo * of_x * problem["w1_global"], torch.ones(6))
    torch.testing.assert_close(undo2 * between * problem["w2_global"], torch.ones(6))
