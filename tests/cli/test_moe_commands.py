"""The documented commands of the MoE family, word for word, and what they print."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

DOCUMENTED = (
    "--routine trtllm_fp8_block_scale_moe --backends trtllm --num_tokens 1024 --hidden_size 5120 "
    "--intermediate_size 13824 --num_experts 256 --top_k 8 --n_group 8 --topk_group 1 --routing_method deepseek_v3 "
    "--routed_scaling_factor 2.5 --use_routing_bias -vv"
)
SIZES = "--num_tokens 6 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2"
QUICK = "--backends torch --refcheck --device cpu --num_iters 2"
UPSTREAM = (
    "num_tokens",
    "hidden_size",
    "num_experts",
    "top_k",
    "input_dtype",
    "intermediate_size",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "local_expert_offset",
    "local_num_experts",
    "routing_method",
    "use_shuffled_weight",
    "weight_layout",
    "use_routing_bias",
    "use_routing_scales_on_input",
    "weight_dtype",
    "activation_type",
)
LABELS = {
    "trtllm_fp4_block_scale_moe": ("testTrtllmFp4BlockScaleMoe", "fp4", "[8, 256, 128]", "[8, 256, 64]"),
    "trtllm_fp8_block_scale_moe": ("testTrtllmFp8BlockScaleMoe", "fp8", "[8, 256, 256]", "[8, 256, 128]"),
    "trtllm_fp8_per_tensor_scale_moe": ("testTrtllmFp8PerTensorScaleMoe", "fp8", "[8, 256, 256]", "[8, 256, 128]"),
}


def test_the_documented_command_is_understood(bench):
    outcome = bench(f"{DOCUMENTED} --plan")
    assert outcome.code == 0
    assert "1 case, 0 invalid lines" in outcome.out


def test_the_documented_command_says_on_a_cpu_why_nothing_runs(bench):
    """Without making 54 G of weights first."""
    outcome = bench(f"{DOCUMENTED} --device cpu")
    assert outcome.code == 1
    (warning,) = outcome.lines("WARNING")
    assert "it needs a CUDA GPU of compute capability 10.0, 10.3 or 10.7" in warning
    assert outcome.lines("ERROR") == ["No backends to test. Exiting. Try --backends torch."]


@pytest.mark.parametrize("name", LABELS)
def test_the_documented_lines_of_tensorrt_llms_routines(bench, name):
    label, stored, first, second = LABELS[name]
    outcome = bench(f"--routine {name} {SIZES} {QUICK} -vv")
    assert outcome.code == 0
    info = outcome.lines("INFO")
    assert info[0].startswith(f"args = Namespace(routine='{name}', ")
    assert info[1] == f"Running {label}"
    assert info[3] == "Configuration: tokens=6, hidden=256, intermediate=128, experts=8, top_k=2"
    *_, logits, states, w1, w2, active = outcome.lines("VVERBOSE")
    assert [logits, states, w1, w2] == [
        "routing_logits.shape = torch.Size([6, 8])",
        "hidden_states.shape = torch.Size([6, 256])",
        f"gemm1_weights_{stored}.shape = torch.Size({first})",
        f"gemm2_weights_{stored}.shape = torch.Size({second})",
    ]
    assert re.fullmatch(r"num_active_experts = [2-8]", active)
    sets, output = outcome.lines("REFCHECK")
    assert sets == "Backend torch: 0/6 (0.00%) elements differ from the reference (routing_replay_out)"
    assert output.startswith("Backend torch: 0/1536 (0.00%) elements differ from the reference (output, max abs ")
    (line,) = outcome.lines("PERF")
    assert line.startswith("torch          :: median time ")


def test_the_documented_lines_of_cutlass(bench):
    outcome = bench(f"--routine cutlass_fused_moe {SIZES} --ep_size 2 --ep_rank 1 --input_dtype float16 {QUICK} -vv")
    assert outcome.code == 0
    assert outcome.lines("INFO")[1] == "Running testCutlassFusedMoe"
    *_, x, w31, w2, active = outcome.lines("VVERBOSE")
    assert [x, w31, w2] == [
        "x.shape = torch.Size([6, 256])",
        "w31_weight.shape = torch.Size([8, 256, 256])",
        "w2_weight.shape = torch.Size([8, 256, 128])",
    ]
    assert active.startswith("num_active_experts = ")


def test_the_namespace_has_the_documented_attributes_in_their_order(bench):
    (line,) = [
        line for line in bench(f"--routine cutlass_fused_moe {SIZES} {QUICK} -v").lines("INFO") if "args" in line
    ]
    names = re.findall(r"(\w+)=", line.partition("Namespace")[2])
    start = names.index("num_tokens")
    assert tuple(names[start : start + len(UPSTREAM)]) == UPSTREAM
    rest = ["autotune", "cutlass_variant", "quantized_input", "tp_size", "tp_rank", "ep_size", "ep_rank"]
    assert [name for name in names if name in rest] == rest


def test_rows_have_the_documented_columns(bench, tmp_path: Path):
    path = tmp_path / "out.csv"
    for line in (
        "--routine trtllm_fp8_block_scale_moe --n_group 4 --topk_group 2 --use_routing_bias --gated_act swiglu",
        "--routine cutlass_fused_moe --cutlass_variant fp8 --tp_size 2 --tp_rank 1 --autotune",
    ):
        assert bench(f"{line} {SIZES} {QUICK} --output_path {path} --append").code == 0
    block, cutlass = csv.DictReader(path.open())
    columns = ("num_tokens", "intermediate_size", "num_experts", "top_k", "n_group", "topk_group", "routing_method")
    assert [block[name] for name in columns] == ["6", "128", "8", "2", "4", "2", "deepseek_v3"]
    assert (block["gated_act"], block["activation_type"], block["use_routing_bias"]) == ("swiglu", "Swiglu", "True")
    assert block["weight_layout"] == ""  # PyTorch has no use for it: it is not echoed as if it had taken effect
    assert (cutlass["cutlass_variant"], cutlass["tp_size"], cutlass["tp_rank"], cutlass["ep_size"]) == (
        "fp8",
        "2",
        "1",
        "1",
    )
    assert (cutlass["autotune"], cutlass["ignored_flags"]) == ("", "autotune")
    assert float(block["flops"]) == 6 * 2 * 6 * 256 * 128 == 2 * float(cutlass["local_flops"])
    assert 1 / 8 <= float(block["busiest_expert_share"]) <= 1 / 2


def test_the_documents_sentence_about_groups(bench):
    outcome = bench(f"--routine trtllm_fp8_block_scale_moe {SIZES} {QUICK} --routing_method renormalize --n_group 4")
    assert outcome.code == 2
    assert "Routing kernel with groups implies DeepSeekV3 routing method." in outcome.out + outcome.err


def test_flags_that_cutlass_does_not_read_are_said_to_be_ignored(bench):
    outcome = bench(f"--routine cutlass_fused_moe {SIZES} {QUICK} --routing_method topk --n_group 4")
    assert outcome.code == 0
    assert "--n_group is ignored: cutlass_fused_moe does not read it." in outcome.lines("WARNING")
