"""trtllm_fp8_per_tensor_scale_moe: its call, its check, mixtures that this must find out, limits."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.formats.shuffle import interleave_halves, shuffle_rows
from tests.contract import contract, covers
from tests.routines.gemm.kernels import assert_refused, assert_runs_nowhere_without_gpu
from tests.routines.harness import assert_passes, launch_of, run, unconditional
from tests.routines.moe import library
from tests.routines.moe.broken import CASE, assert_everything_is_caught, changed, layer, neighbours, router

NAME = "trtllm_fp8_per_tensor_scale_moe"
PATH = f"flashinfer.fused_moe.{NAME}"
LLAMA = "--routing_method llama4 --top_k 1"
ACTIVATIONS = ["", "--gated_act geglu", "--activation-type relu2", "--activation-type IDENTITY"]


@covers(NAME, "trtllm")
@pytest.mark.parametrize(
    "flags",
    [
        *ACTIVATIONS,
        f"{LLAMA} --use_routing_scales_on_input --use_routing_bias",
        "--local_expert_offset 2 --local_num_experts 4 --n_group 2",
    ],
)
def test_the_call_is_right_in_flashinfers_own_layout(flags):
    with contract(PATH, library.fp8_per_tensor), unconditional(NAME, "trtllm"):
        assert_passes(run(NAME, f"{CASE} {flags}", "trtllm"))


@pytest.mark.parametrize("gated", [True, False])
def test_arguments(gated):
    activation = "" if gated else "--activation-type relu2"
    with contract(PATH, library.fp8_per_tensor) as kernel:
        launch, problem = launch_of(NAME, "trtllm", f"{CASE} {LLAMA} --use_routing_scales_on_input {activation}")
        returned = launch()
    call = kernel.call
    assert call["hidden_states"] is problem["x"]
    assert call["hidden_states"].dtype is call["gemm1_weights"].dtype is torch.float8_e4m3fn
    first = problem["w1"][3]
    assert torch.equal(call["gemm1_weights"][3], shuffle_rows(interleave_halves(first) if gated else first))
    assert torch.equal(call["gemm2_weights"][3], shuffle_rows(problem["w2"][3]))
    gate = problem["w1_scale"] * problem["x_scale"]
    assert torch.equal(call["output1_scales_gate_scalar"], gate)
    assert torch.equal(call["output1_scales_scalar"], 7 * gate if gated else torch.full((8,), 7.0))
    assert torch.equal(call["output2_scales_scalar"], problem["w2_scale"] / 7)
    assert call["use_routing_scales_on_input"] is True
    assert (call["routing_method_type"], call["top_k"], call["activation_type"]) == (3, 1, 3 if gated else 6)
    assert call["routing_logits"].dtype is torch.bfloat16
    assert launch.outputs(returned) == {name: call[name] for name in ("output", "routing_replay_out")}


@pytest.mark.parametrize("method", ["renormalize", "renormalize_naive", "topk", "llama4", "deepseek_v3"])
@pytest.mark.parametrize("flags", ["--top_k 5 --use_routing_bias", "--top_k 8 --use_routing_scales_on_input"])
def test_torch_takes_every_method_and_number_of_experts(method, flags):
    assert_passes(run(NAME, f"{CASE} --routing_method {method} {flags}", "torch"))


@pytest.mark.parametrize("activation", ["Gelu", "Relu", "Silu", "Swiglu", "Geglu", "SwigluBias", "Relu2", "Identity"])
def test_torch_takes_every_activation(activation):
    assert_passes(run(NAME, f"{CASE} --activation_type {activation} --local_num_experts 5", "torch"))


@pytest.mark.parametrize("sizes", ["--hidden_size 48 --intermediate_size 20", "--num_tokens 1 --input_dtype float16"])
def test_torch_takes_any_size(sizes):
    assert_passes(run(NAME, f"{CASE} {sizes}", "torch"))


def test_what_is_wrong_is_caught():
    mistakes = {
        "the neighbouring expert's first scale": neighbours("w1_scale", 0),
        "the neighbouring expert's second scale": neighbours("w2_scale", 0),
        "a scale forgotten": changed("w1_scale", torch.ones_like),
        "the hidden states' scale forgotten": changed("x_scale", torch.ones_like),
        "the hidden states' scale twice": changed("x_scale", torch.square),
        "the routed scaling factor forgotten": router(scaling=1.0),
        "routing weights that are logits": router(method="topk"),
        "another activation": layer(activation="Geglu"),
        "routing weights on the input": layer(weights_on_input=True),
    }
    assert_everything_is_caught(NAME, mistakes)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--activation-type silu", "have the activation Swiglu or Geglu or Relu2 or Identity"),
        ("--use_routing_scales_on_input", "with --routing_method llama4 only"),
        ("--hidden_size 192", "must be divisible by 128"),
        ("--routing_method llama4", "takes a --top_k of 1"),
        (f"{LLAMA} --num_experts 256", "and 128 experts at most"),
    ],
)
def test_limits_of_the_library(flags, says):
    assert_refused(NAME, "trtllm", f"{CASE} {flags}", says)


def test_without_a_gpu_flashinfer_says_why():
    assert_runs_nowhere_without_gpu(NAME, "trtllm", CASE)
