"""trtllm_fp4_block_scale_moe: its call, its check, mixtures that this must find out, limits."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.formats import nvfp4
from flashinfer_perf.formats.nvfp4 import Nvfp4
from tests.contract import contract, covers
from tests.routines.gemm.kernels import assert_refused, assert_runs_nowhere_without_gpu
from tests.routines.harness import assert_passes, case_of, launch_of, make_problem, problem_of, run, unconditional
from tests.routines.moe import library
from tests.routines.moe.broken import CASE, assert_everything_is_caught, changed, layer, neighbours, router

NAME = "trtllm_fp4_block_scale_moe"
PATH = f"flashinfer.fused_moe.{NAME}"


@covers(NAME, "trtllm")
@pytest.mark.parametrize(
    "flags",
    [
        "--n_group 2 --use_routing_bias",
        "--routing_method renormalize_naive --gated_act geglu",
        "--routing_method renormalize --activation-type relu2 --local_expert_offset 4 --local_num_experts 3",
        "--activation-type identity",
    ],
)
def test_the_call_is_right_in_flashinfers_own_layout(flags):
    with contract(PATH, library.fp4), unconditional(NAME, "trtllm"):
        assert_passes(run(NAME, f"{CASE} {flags}", "trtllm"))


@pytest.mark.parametrize("gated", [True, False])
def test_arguments(gated):
    activation = "" if gated else "--activation-type relu2"
    with contract(PATH, library.fp4) as kernel:
        launch, problem = launch_of(NAME, "trtllm", f"{CASE} {activation}")
        returned = launch()
    call, rows = kernel.call, 256 if gated else 128
    assert call["hidden_states"] is problem["x_packed"]
    assert (call["hidden_states_scale"].shape, call["hidden_states_scale"].dtype) == ((9, 16), torch.float8_e4m3fn)
    assert (call["gemm1_weights"].shape, call["gemm1_weights"].dtype) == ((8, rows, 128), torch.uint8)
    assert (call["gemm1_weights_scale"].shape, call["gemm1_weights_scale"].dtype) == (
        (8, rows, 16),
        torch.float8_e4m3fn,
    )
    assert (call["gemm2_weights"].shape, call["gemm2_weights_scale"].shape) == ((8, 256, 64), (8, 256, 8))
    gate = 1 / (problem["w1_global"] * 256)
    assert torch.equal(call["output1_scale_gate_scalar"], gate)
    assert torch.equal(call["output1_scale_scalar"], 42 * gate if gated else torch.full((8,), 42.0))
    assert torch.equal(call["output2_scale_scalar"], 1 / (problem["w2_global"] * 42))
    assert torch.equal(call["gemm1_alpha"], torch.ones(8)) if gated else call["gemm1_alpha"] is None
    assert all(call[name] is None for name in ("gemm1_bias", "gemm1_beta", "gemm1_clamp_limit", "gemm2_bias"))
    assert (call["n_group"], call["topk_group"], call["routed_scaling_factor"]) == (1, 1, 2.5)
    assert call["activation_type"] == (3 if gated else 6)
    assert launch.outputs(returned) == {name: call[name] for name in ("output", "routing_replay_out")}


@pytest.mark.parametrize("flags", ["", "--input_dtype float16 --weight_dtype float16", "--activation-type relu"])
@pytest.mark.parametrize("sizes", ["", "--num_tokens 1 --hidden_size 48 --intermediate_size 80"])
def test_torch_passes(flags, sizes):
    assert_passes(run(NAME, f"{CASE} {flags} {sizes}", "torch"))


def test_hidden_states_are_exact_in_16_bits():
    """Whoever takes them packed and whoever takes them in 16 bits has the same."""
    _, problem = problem_of(NAME, f"{CASE} --num_tokens 64")
    packed = nvfp4.decode(Nvfp4(problem["x_packed"], problem["x_scale"]), 256.0)
    assert torch.equal(problem["x"].float(), packed)
    again = nvfp4.encode(problem["x"], 256.0)
    assert torch.equal(again.packed, problem["x_packed"])
    assert torch.equal(again.scales, problem["x_scale"])


def test_what_is_wrong_is_caught():
    mistakes = {
        "the neighbouring expert's global scale": neighbours("w1_global", 0),
        "the neighbouring expert's second global scale": neighbours("w2_global", 0),
        "the neighbouring expert's scales": neighbours("w1_scale", 0),
        "the neighbouring row's scales": neighbours("w1_scale", 1),
        "the neighbouring block's scales": neighbours("w1_scale", 2),
        "the neighbouring block's scales of the second matrix": neighbours("w2_scale", 2),
        "nibbles swapped": changed("w1", lambda packed: (packed >> 4) | (packed << 4)),
        "signs forgotten": changed("w2", lambda packed: packed & 0x77),
        "global scales that multiply": changed("w1_global", torch.reciprocal),
        "the routed scaling factor forgotten": router(scaling=1.0),
        "routing weights that are logits": router(method="topk"),
        "routing weights on the input": layer(weights_on_input=True),
    }
    assert_everything_is_caught(NAME, mistakes)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hidden_size 192", "must be divisible by 128"),
        ("--intermediate_size 64", "must be divisible by 128"),
        ("--activation-type gelu", "have the activation Swiglu or Geglu or Relu2 or Identity"),
        ("--use_routing_scales_on_input", "leave --use_routing_scales_on_input away"),
    ],
)
def test_limits_of_the_library(flags, says):
    assert_refused(NAME, "trtllm", f"{CASE} {flags}", says)


def test_sizes_that_are_no_whole_blocks():
    with pytest.raises(InvalidInput, match=r"hidden_size \(40\) .* must be divisible by 16"):
        make_problem(case_of(NAME, f"{CASE} --hidden_size 40"))


def test_without_a_gpu_flashinfer_says_why():
    assert_runs_nowhere_without_gpu(NAME, "trtllm", CASE)
