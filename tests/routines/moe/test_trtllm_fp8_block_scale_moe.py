"""trtllm_fp8_block_scale_moe: its call, its check, mixtures that this must find out, limits."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from tests.contract import contract, covers
from tests.routines.gemm.kernels import assert_refused, assert_runs_nowhere_without_gpu
from tests.routines.harness import (
    assert_passes,
    case_of,
    launch_of,
    make_problem,
    problem_of,
    run,
    unconditional,
)
from tests.routines.moe import library
from tests.routines.moe.broken import (
    CASE,
    assert_everything_is_caught,
    changed,
    layer,
    neighbours,
    router,
)

NAME = "trtllm_fp8_block_scale_moe"
PATH = f"flashinfer.fused_moe.{NAME}"
GROUPS = "--n_group 4 --topk_group 2 --use_routing_bias"


@covers(NAME, "trtllm")
@pytest.mark.parametrize(
    "flags",
    [
        GROUPS,
        "--use_shuffled_weight",
        "--use_shuffled_weight --weight_layout 2 --routing_method renormalize",
        "--local_expert_offset 2 --local_num_experts 4",
    ],
)
def test_the_call_is_right_in_flashinfers_own_layout(flags):
    with contract(PATH, library.fp8_block), unconditional(NAME, "trtllm"):
        assert_passes(run(NAME, f"{CASE} {flags}", "trtllm"))


@pytest.mark.parametrize("shuffled", ["", "--use_shuffled_weight", "--use_shuffled_weight --weight_layout 2"])
def test_arguments(shuffled):
    with contract(PATH, library.fp8_block) as kernel:
        launch, problem = launch_of(NAME, "trtllm", f"{CASE} {GROUPS} {shuffled} --enable_pdl")
        returned = launch()
    call = kernel.call
    blocks = "layout 2" in shuffled
    assert call["hidden_states"] is problem["x"]
    assert (call["hidden_states_scale"].shape, call["hidden_states_scale"].is_contiguous()) == ((2, 9), True)
    assert call["gemm1_weights"].shape == ((8, 2, 256, 128) if blocks else (8, 256, 256))
    assert call["gemm2_weights"].shape == ((8, 1, 256, 128) if blocks else (8, 256, 128))
    assert call["gemm1_weights"].dtype is torch.float8_e4m3fn
    assert (call["gemm1_weights"] is problem["w1"]) is not bool(shuffled)
    assert call["gemm1_weights_scale"] is problem["w1_scale"]
    assert call["gemm2_weights_scale"].shape == (8, 2, 1)
    assert call["routing_logits"].dtype is torch.float32
    assert call["routing_bias"].dtype is torch.bfloat16
    assert (call["num_experts"], call["top_k"], call["n_group"], call["topk_group"]) == (8, 2, 4, 2)
    assert (call["local_expert_offset"], call["local_num_experts"], call["intermediate_size"]) == (0, 8, 128)
    assert (call["routed_scaling_factor"], call["routing_method_type"], call["activation_type"]) == (2.5, 2, 3)
    assert (call["use_shuffled_weight"], call["weight_layout"]) == (bool(shuffled), 2 if blocks else 0)
    assert call["enable_pdl"] is True
    assert (call["output"].shape, call["output"].dtype) == ((9, 256), torch.bfloat16)
    assert (call["routing_replay_out"].shape, call["routing_replay_out"].dtype) == ((9, 2), torch.int16)
    assert launch.outputs(returned) == {name: call[name] for name in ("output", "routing_replay_out")}


def test_defaults_of_deepseek_v3():
    """The documents' defaults: one group, a factor of 2.5, and a bias of zeros, which the kernel would read anyway."""
    with contract(PATH, library.fp8_block) as kernel:
        launch_of(NAME, "trtllm", CASE)[0]()
    call = kernel.call
    assert (call["n_group"], call["topk_group"], call["routed_scaling_factor"]) == (1, 1, 2.5)
    assert torch.equal(call["routing_bias"], torch.zeros(8, dtype=torch.bfloat16))


def test_other_methods_leave_groups_unset():
    with contract(PATH, library.fp8_block) as kernel:
        launch_of(NAME, "trtllm", f"{CASE} --routing_method topk")[0]()
    call = kernel.call
    assert (call["n_group"], call["topk_group"], call["routed_scaling_factor"], call["routing_bias"]) == (None,) * 4
    assert call["routing_logits"].dtype is torch.bfloat16
    assert call["routing_method_type"] == 5


@pytest.mark.parametrize("flags", ["", GROUPS, "--routing_method llama4 --top_k 1 --use_routing_scales_on_input"])
@pytest.mark.parametrize("sizes", ["", "--num_tokens 1 --input_dtype float16", "--activation-type relu2"])
def test_torch_passes(flags, sizes):
    assert_passes(run(NAME, f"{CASE} {flags} {sizes}", "torch"))


def test_what_is_wrong_is_caught():
    """Beside the common mistakes those of block scales and of routing."""
    mistakes = {
        "the neighbouring expert's scales": neighbours("w1_scale", 0),
        "the neighbouring rows' scales": neighbours("w1_scale", 1),
        "the neighbouring columns' scales": neighbours("w1_scale", 2),
        "the neighbouring rows' scales of the second matrix": neighbours("w2_scale", 1),
        "the neighbouring token's scales": neighbours("x_scale", 0),
        "the neighbouring columns' scales of a token": neighbours("x_scale", 1),
        "scales forgotten": changed("w1_scale", torch.ones_like),
        "the routed scaling factor forgotten": router(scaling=1.0),
        "routing weights that are logits": router(method="topk"),
        "routing weights on the input": layer(weights_on_input=True),
        "experts of any group": router(n_group=1),
        "groups by the wrong number": router(topk_group=1),
        "the bias forgotten": changed("routing_bias", torch.zeros_like),
        "the neighbouring expert's bias": neighbours("routing_bias", 0),
    }
    assert_everything_is_caught(NAME, mistakes, f"{CASE} --num_tokens 24 {GROUPS}")


def test_work_counts_the_experts_that_are_active():
    flags, problem = problem_of(NAME, f"{CASE} {GROUPS}")
    active = problem.facts["active_experts"]
    assert problem.work == Work(flags.num_tokens * 2 * 6 * 256 * 128, 9 * 256 * 3 + 9 * 8 * 4 + active * 3 * 256 * 128)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hidden_size 192", "hidden_size (192) and intermediate_size (128) must be divisible by 128"),
        ("--intermediate_size 64", "intermediate_size (64) must be divisible by 128"),
        ("--top_k 9", "top_k (9) must not exceed num_experts (8)"),
        ("--n_group 3", "n_group (3) must divide num_experts (8)"),
        ("--n_group 2 --topk_group 3", "topk_group (3) must not exceed n_group (2)"),
        ("--n_group 8 --topk_group 1 --top_k 2", "top_k (2) must not exceed the experts of the --topk_group groups"),
        (
            "--local_expert_offset 5 --local_num_experts 4",
            "(4) must not reach from local_expert_offset (5) beyond num_experts (8)",
        ),
        ("--local_expert_offset 8", "local_expert_offset (8) must be below num_experts (8)"),
        ("--gated_act geglu --activation-type relu", "--gated_act geglu contradicts --activation-type Relu"),
        ("--activation-type swish", "activation: 'swish' is not one of Gelu, Relu, Silu, Swiglu"),
        *(
            (f"--routing_method {method} {group}", "Routing kernel with groups implies DeepSeekV3 routing method.")
            for method in ("renormalize", "llama4")
            for group in ("--n_group 1", "--topk_group 1")
        ),
    ],
)
def test_bad_input(flags, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(NAME, f"{CASE} {flags}"))
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--weight_layout 1", "reads no weights in MajorMn"),
        ("--weight_layout 2", "add --use_shuffled_weight"),
        ("--activation-type geglu", "have the activation Swiglu"),
        ("--use_routing_scales_on_input", "leave --use_routing_scales_on_input away"),
        ("--num_experts 6", "a --num_experts divisible by 4 and above --top_k"),
        ("--num_experts 64 --top_k 9", "a --top_k of 8 at most"),
        ("--n_group 4 --topk_group 1", "needs more experts in the chosen groups than --top_k"),
        ("--input_dtype float16", "write bfloat16 only"),
        ("--routing_method llama4", "takes a --top_k of 1"),
        ("--routing_method topk --num_experts 64 --top_k 33", "a --top_k of 32 at most"),
        ("--num_experts 32 --n_group 16", "takes 8 groups at most"),
        ("--num_experts 128 --n_group 2 --topk_group 2", "with 32 experts each at most"),
        ("--n_group 8 --topk_group 5", "a --topk_group of 4 at most"),
    ],
)
def test_limits_of_the_library(flags, says):
    assert_refused(NAME, "trtllm", f"{CASE} {flags}", says)


def test_without_a_gpu_flashinfer_says_why():
    assert_runs_nowhere_without_gpu(NAME, "trtllm", CASE)
    assert_runs_nowhere_without_gpu(NAME, "triton", CASE)
