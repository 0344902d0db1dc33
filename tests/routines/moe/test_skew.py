"""--routing_skew: what may be typed, what comes of it, files."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from tests.routines.harness import case_of, make_problem, problem_of

NAME = "trtllm_fp8_per_tensor_scale_moe"
CASE = "--hidden_size 32 --intermediate_size 32 --num_experts 16 --top_k 2"


def facts(skew, tokens=4000, method="renormalize"):
    flags = f"{CASE} --num_tokens {tokens} --routing_method {method} --routing_skew {skew}"
    return problem_of(NAME, flags)[1].facts


@pytest.mark.parametrize("text", ["zipf", "zipf:", "zipf:x", "zipf:-1", "zipf:inf", "file:", "even"])
def test_bad_texts(text):
    with pytest.raises(InvalidInput, match="--routing_skew: "):
        case_of(NAME, f"{CASE} --num_tokens 1 --routing_skew {text}")


def test_uniform_is_even_and_zipf_is_not():
    even, skewed, steep = facts("uniform"), facts("zipf:1"), facts("zipf:2.5", method="deepseek_v3")
    assert even["busiest_expert_share"] == pytest.approx(1 / 16, rel=0.15)
    assert 0.15 < skewed["busiest_expert_share"] < steep["busiest_expert_share"] <= 0.5


def test_the_first_of_two_choices_follows_zipfs_law():
    """Without replacement: the most popular of 16 experts with weights 1/r is first with 1 / H(16) = 0.296."""
    flags = f"{CASE} --num_tokens 4000 --top_k 1 --routing_method renormalize --routing_skew zipf:1"
    _, problem = problem_of(NAME, flags)
    counts = torch.bincount(problem.truth()["routing_replay_out"].experts.flatten(), minlength=16)
    expected = 4000 / torch.arange(1, 17) / sum(1 / r for r in range(1, 17))
    assert torch.allclose(counts.sort(descending=True).values.float(), expected, rtol=0.3, atol=10)


def test_zipf_of_0_is_uniform_too():
    assert facts("zipf:0")["busiest_expert_share"] == pytest.approx(1 / 16, rel=0.15)


@pytest.fixture
def routing(tmp_path):
    def write(text):
        path = tmp_path / "routing.txt"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("method", ["renormalize", "renormalize_naive", "topk", "llama4", "deepseek_v3"])
def test_a_file_says_who_goes_where(routing, method):
    path = routing("# recorded\n3 7\n\n15, 0  # a comment\n")
    flags = f"{CASE} --num_tokens 5 --routing_method {method} --use_routing_bias --routing_skew file:{path}"
    _, problem = problem_of(NAME, flags)
    assert problem.truth()["routing_replay_out"].experts.tolist() == [[3, 7], [15, 0], [3, 7], [15, 0], [3, 7]]
    assert (problem.facts["active_experts"], problem.facts["busiest_expert_share"]) == (4, 0.3)


def test_a_file_of_experts_in_groups(routing):
    path = routing("0 3\n12 4\n")
    flags = f"{CASE} --num_tokens 2 --n_group 4 --topk_group 2 --routing_skew file:{path}"
    assert problem_of(NAME, flags)[1].truth()["routing_replay_out"].experts.tolist() == [[0, 3], [12, 4]]
    with pytest.raises(
        InvalidInput, match=r"the experts 12 4 cannot be chosen together: .* more than 1 \(--topk_group"
    ):
        make_problem(case_of(NAME, flags.replace("--topk_group 2", "--topk_group 1")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no experts; each line lists the 2 of a token"),
        ("3 16", "line 1: '3 16': experts are numbered 0 to 15"),
        ("3 4\n3", "line 2 must name 2 different experts"),
        ("3 3", "line 1 must name 2 different experts"),
        ("a b", "experts are numbered 0 to 15"),
    ],
)
def test_bad_files(routing, text, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(NAME, f"{CASE} --num_tokens 2 --routing_skew file:{routing(text)}"))
    assert says in str(refusal.value)


def test_no_file():
    with pytest.raises(InvalidInput, match="cannot read nowhere"):
        make_problem(case_of(NAME, f"{CASE} --num_tokens 2 --routing_skew file:nowhere"))


def test_cutlass_takes_it_too(routing):
    flags = f"{CASE} --num_tokens 2 --routing_skew file:{routing('5 6')}"
    assert problem_of("cutlass_fused_moe", flags)[1]["experts"].tolist() == [[5, 6], [5, 6]]
