"""cutlass_fused_moe: its call, its check, mixtures that this must find out, ranks, limits."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from tests.contract import contract, covers
from tests.routines.gemm.kernels import assert_refused, assert_runs_nowhere_without_gpu, reason_on
from tests.routines.harness import assert_passes, case_of, launch_of, make_problem, problem_of, run, unconditional
from tests.routines.moe import library
from tests.routines.moe.broken import CASE, assert_everything_is_caught, changed, layer, neighbours

NAME = "cutlass_fused_moe"
PATH = f"flashinfer.fused_moe.{NAME}"
RANKS = "--tp_size 2 --tp_rank 1 --ep_size 4 --ep_rank 2"
VARIANTS = ["base", "fp8", "nvfp4"]


@covers(NAME, "cutlass")
@pytest.mark.parametrize("variant", ["base", "fp8", "nvfp4", "nvfp4 --quantized_input"])
@pytest.mark.parametrize("flags", [RANKS, "--input_dtype float16 --activation-type relu2"])
def test_the_call_is_right_in_flashinfers_own_layout(variant, flags):
    with contract(PATH, library.cutlass), unconditional(NAME, "cutlass"):
        assert_passes(run(NAME, f"{CASE} --cutlass_variant {variant} {flags}", "cutlass"))


@pytest.mark.parametrize("activation", ["Gelu", "Relu", "Silu", "Swiglu", "Geglu", "SwigluBias", "Identity"])
def test_the_activation_is_passed_on(activation):
    with contract(PATH, library.cutlass) as kernel, unconditional(NAME, "cutlass"):
        assert_passes(run(NAME, f"{CASE} --activation-type {activation}", "cutlass"))
    assert {call["activation_type"].name for call in kernel.calls} == {activation}


@pytest.mark.parametrize("variant", VARIANTS)
def test_arguments(variant):
    with contract(PATH, library.cutlass) as kernel:
        launch, problem = launch_of(NAME, "cutlass", f"{CASE} --cutlass_variant {variant} {RANKS} --enable_pdl")
        returned = launch()
    call = kernel.call
    assert call["input"] is problem["x"]
    assert call["token_selected_experts"] is problem["experts"]
    assert call["token_final_scales"] is problem["weights"]
    assert (call["tp_size"], call["tp_rank"], call["ep_size"], call["ep_rank"]) == (2, 1, 4, 2)
    assert call["enable_pdl"] is True
    assert (call["output"].shape, call["output"].dtype) == ((9, 256), torch.bfloat16)
    assert launch.outputs(returned) == {"output": call["output"]}
    shapes = {"base": (2, 128, 256), "fp8": (2, 128, 256), "nvfp4": (2, 128, 16)}
    dtypes = {"base": torch.bfloat16, "fp8": torch.float8_e4m3fn, "nvfp4": torch.int64}
    assert (call["fc1_expert_weights"].shape, call["fc1_expert_weights"].dtype) == (shapes[variant], dtypes[variant])
    assert call["fc1_expert_weights"].data_ptr() == problem["w1"].data_ptr()


def test_scales_of_nvfp4_are_padded_and_packed_by_fours():
    with contract(PATH, library.cutlass) as kernel:
        launch_of(NAME, "cutlass", f"{CASE} --cutlass_variant nvfp4 {RANKS}")[0]()
    first, second = kernel.call["quant_scales"][1], kernel.call["quant_scales"][4]
    assert (first.shape, second.shape) == ((2, 128, 4), (2, 256, 1))


def test_quantised_input_has_swizzled_scales():
    with contract(PATH, library.cutlass) as kernel:
        _, problem = launched = launch_of(NAME, "cutlass", f"{CASE} --cutlass_variant nvfp4 --quantized_input")
        launched[0]()
    assert kernel.call["input"] is problem["x_packed"]
    assert (kernel.call["input_sf"].shape, kernel.call["input_sf"].dtype) == ((128, 16), torch.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("flags", ["", f"{RANKS} --num_tokens 1", "--input_dtype float16 --top_k 8"])
def test_torch_passes(variant, flags):
    assert_passes(run(NAME, f"{CASE} --cutlass_variant {variant} {flags}", "torch"))


def test_ranks_give_their_shares_of_the_sum():
    """All ranks hold parts of the same layer, and what they give adds up to what one rank gives."""
    whole = problem_of(NAME, CASE)[1].truth()["output"]
    parts = [
        problem_of(NAME, f"{CASE} --tp_size 2 --tp_rank {tp} --ep_size 4 --ep_rank {ep}")[1].truth()["output"]
        for tp in range(2)
        for ep in range(4)
    ]
    assert torch.allclose(sum(parts), whole, rtol=1e-4, atol=1e-5)
    assert all(part.abs().sum() > 0 for part in parts)


def test_a_token_without_an_expert_here_gets_zeros():
    _, problem = problem_of(NAME, f"{CASE} --ep_size 4 --ep_rank 1")
    elsewhere = ((problem["experts"] // 2) != 1).all(dim=1)
    assert elsewhere.any()
    assert problem.truth()["output"][elsewhere].abs().sum() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_wrong_is_caught(variant):
    mistakes = {
        "routing weights forgotten": changed("weights", torch.ones_like),
        "the other expert's weight": neighbours("weights", 1),
        "another token's experts": neighbours("experts", 0),
        "the last expert forgotten": changed("weights", lambda weights: weights * torch.tensor([1.0, 0.0])),
        "another activation": layer(activation="Geglu"),
    }
    if variant == "fp8":
        mistakes["the neighbouring expert's scale"] = neighbours("w2_scale", 0)
    if variant == "nvfp4":
        mistakes["the neighbouring expert's scale"] = neighbours("w2_global", 0)
        mistakes["the neighbouring block's scale"] = neighbours("w1_scale", 2)
    assert_everything_is_caught(NAME, mistakes, f"{CASE} --cutlass_variant {variant}")


def test_routing_is_a_softmax_renormalised():
    _, problem = problem_of(NAME, CASE)
    assert torch.allclose(problem["weights"].sum(dim=1), torch.ones(9))
    assert (problem["weights"].diff(dim=1) <= 0).all()
    assert problem["experts"].dtype is torch.int32


def test_shown():
    """Shapes of the whole layer, whatever the ranks, as upstream shows them."""
    _, problem = problem_of(NAME, f"{CASE} {RANKS}")
    assert [line.text for line in problem.shown] == [
        "x.shape = torch.Size([9, 256])",
        "w31_weight.shape = torch.Size([8, 256, 256])",
        "w2_weight.shape = torch.Size([8, 256, 128])",
        f"num_active_experts = {problem.facts['active_experts']}",
    ]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--tp_size 2 --tp_rank 2", "tp_rank (2) must be below tp_size (2)"),
        ("--ep_rank 1", "ep_rank (1) must be below ep_size (1)"),
        ("--tp_size 3", "tp_size (3) must divide intermediate_size (128)"),
        ("--ep_size 3", "ep_size (3) must divide num_experts (8)"),
        ("--cutlass_variant nvfp4 --tp_size 16", "must be divisible by 16"),
        ("--top_k 9", "top_k (9) must not exceed num_experts (8)"),
        ("--quantized_input", "--quantized_input is for --cutlass_variant nvfp4, not base"),
        ("--cutlass_variant int4", "--cutlass_variant: 'int4' is not one of base, fp8, nvfp4"),
    ],
)
def test_bad_input(flags, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(NAME, f"{CASE} {flags}"))
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hidden_size 252", "divisible by 8"),
        ("--cutlass_variant fp8 --hidden_size 248", "divisible by 16"),
        ("--cutlass_variant nvfp4 --tp_size 4", "divisible by 64"),
        ("--cutlass_variant nvfp4", "from compute capability 10.0 on"),
    ],
)
def test_limits_of_the_library(flags, says):
    if "10.0" in says:
        assert says in reason_on(Machine("cuda", "", (9, 0)), NAME, "cutlass", f"{CASE} {flags}")
        assert says not in reason_on(Machine("cuda", "", (10, 0)), NAME, "cutlass", f"{CASE} {flags}")
    else:
        assert_refused(NAME, "cutlass", f"{CASE} {flags}", says)


def test_without_a_gpu_flashinfer_says_why():
    assert_runs_nowhere_without_gpu(NAME, "cutlass", CASE)
