"""FLOPs and bytes: the published rows to their last digit, and what a rank really does."""

from __future__ import annotations

import pytest

from flashinfer_perf.routines.moe import work
from tests.routines.harness import case_of, problem_of

LARGE = "--num_tokens 1024 --hidden_size 1024 --intermediate_size 1024 --num_experts"
SMALL = "--num_tokens 32 --hidden_size 128 --intermediate_size 128 --input_dtype float16 --top_k 2 --num_experts"


@pytest.mark.parametrize(
    ("flags", "stored", "logits", "active", "median_ms", "tflops", "tb_per_s"),
    [
        (f"{LARGE} 256 --top_k 8", "nvfp4", 4, 256, 0.131376, 392.3061103397881, 3.476434),
        (f"{LARGE} 256 --top_k 8", "fp8", 4, 256, 0.3030245, 170.08396, 2.671403),
        (f"{LARGE} 128 --top_k 1", "fp8", 2, 128, 0.092, 70.02664, 4.413707),
        (f"{SMALL} 2", "base", 2, 2, 0.027808, 0.226246, 0.00766398),
        (f"{SMALL} 2", "fp8", 2, 2, 0.028432, None, 0.00389420),
        (f"{SMALL} 2", "nvfp4", 2, 2, 0.029984, None, 0.00219851),
        (f"{SMALL} 8 --tp_size 2 --ep_size 4", "base", 2, 8, 0.026368, 0.238602, 0.0304660),
    ],
)
def test_published_rows(flags, stored, logits, active, median_ms, tflops, tb_per_s):
    done = work.documented(case_of("cutlass_fused_moe", flags).flags, stored, logits, active)
    assert tflops is None or done.tflops_per_s(median_ms) == pytest.approx(tflops, rel=2e-6)
    assert done.tb_per_s(median_ms) == pytest.approx(tb_per_s, rel=2e-6)


CASE = "--num_tokens 9 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2"


def test_a_rank_does_its_part():
    """Eight ranks together do what one does; each reads the hidden states for itself."""
    whole = problem_of("cutlass_fused_moe", CASE)[1].facts
    ranks = [
        problem_of("cutlass_fused_moe", f"{CASE} --tp_size 2 --tp_rank {tp} --ep_size 4 --ep_rank {ep}")[1].facts
        for tp in range(2)
        for ep in range(4)
    ]
    assert whole["local_flops"] == 9 * 2 * 6 * 256 * 128 == sum(facts["local_flops"] for facts in ranks)
    assert 2 * whole["local_active_experts"] == sum(facts["local_active_experts"] for facts in ranks)
    shared = 9 * 256 * 2 + 9 * 2 * 8 + 9 * 256 * 2
    assert whole["local_bytes"] == whole["active_experts"] * 3 * 256 * 128 * 2 + shared
    assert sum(facts["local_bytes"] for facts in ranks) == whole["local_bytes"] + 7 * shared


def test_local_experts_and_no_gate():
    """The documented figure knows neither."""
    flags = f"{CASE} --local_expert_offset 2 --local_num_experts 4 --activation-type relu2"
    _, problem = problem_of("trtllm_fp8_per_tensor_scale_moe", flags)
    experts = problem.truth()["routing_replay_out"].experts
    here = int(((experts >= 2) & (experts < 6)).sum())
    assert problem.facts["local_flops"] == here * 4 * 256 * 128
    assert problem.work.flops == 9 * 2 * 6 * 256 * 128


def test_bytes_of_nvfp4_are_those_of_the_packed_hidden_states():
    _, problem = problem_of("trtllm_fp4_block_scale_moe", CASE)
    expert = 3 * 256 * 128 * 9 // 16 + 2 * 4
    others = 9 * 8 * 4 + 8 * 2 + 9 * 256 * 9 // 16 + 9 * 256 * 2
    assert problem.facts["local_bytes"] == problem.facts["active_experts"] * expert + others
