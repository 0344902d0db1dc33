"""The router's inputs, and a truth that can be asked for another choice."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.moe import routing
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.router import Router, descending
from flashinfer_perf.timing.rotation import plan_rotation
from tests.routines.gemm.kernels import replaced
from tests.routines.harness import assert_caught, assert_passes, problem_of, run_broken
from tests.routines.norm.kernels import wrong

NAME = "trtllm_fp8_per_tensor_scale_moe"
CASE = "--num_tokens 64 --hidden_size 64 --intermediate_size 32 --num_experts 64 --top_k 8"


@pytest.mark.parametrize(
    ("flags", "dtype", "bias"),
    [
        ("", torch.float32, "zeros"),
        ("--use_routing_bias", torch.float32, "drawn"),
        ("--routing_method llama4", torch.bfloat16, None),
        ("--routing_method renormalize --use_routing_bias", torch.bfloat16, "drawn"),
    ],
)
def test_inputs(flags, dtype, bias):
    _, problem = problem_of(NAME, f"{CASE} {flags}")
    assert (problem["routing_logits"].shape, problem["routing_logits"].dtype) == ((64, 64), dtype)
    found = problem.tensors.get("routing_bias")
    assert (found is None) is (bias is None)
    if found is not None:
        assert (found.shape, found.dtype) == ((64,), torch.bfloat16)
        assert bool(found.any()) is (bias == "drawn")


def test_a_choice_of_the_other_of_two_equals_passes_with_its_own_output():
    """16-bit logits of 64 tokens have ties at the border of the eight largest; a kernel may take either."""
    flags = f"{CASE} --routing_method renormalize"
    _, problem = problem_of(NAME, flags)
    choice = problem.truth()["routing_replay_out"]
    ordered = choice.scores.sort(dim=-1, descending=True).values
    assert (ordered[:, 7] == ordered[:, 8]).any()

    def takes_the_last(case, arguments):
        """Of equals, by going through the experts from the last to the first."""
        flip = torch.arange(63, -1, -1)
        reordered = {name: arguments[name][flip] for name in ("w1_scale", "w2_scale")}
        for name in ("w1", "w2"):
            reordered[name] = arguments[name].view(torch.uint8)[flip].view(arguments[name].dtype)
        return {"routing_logits": arguments["routing_logits"][:, flip], **reordered}

    def renumber(case, arguments):
        arguments["routing_replay_out"].copy_(63 - arguments["routing_replay_out"])

    record = run_broken(NAME, wrong(NAME, before=takes_the_last, after=renumber), flags)
    assert_passes(record)


def test_an_output_of_another_choice_is_caught():
    """The experts are right, and the output is that of others."""

    def renumber(case, arguments):
        experts = arguments["routing_replay_out"]
        experts[0] = experts[1]

    assert_caught(run_broken(NAME, wrong(NAME, after=renumber), CASE))
    assert_caught(run_broken(NAME, wrong(NAME, before=replaced("routing_logits", torch.neg)), CASE))


def test_truth_of_others_is_the_truth_where_they_are_forced():
    """The mixture of any experts: those of another router."""
    _, problem = problem_of(NAME, f"{CASE} --routing_method topk")
    mixed = problem.truth()["output"]
    rows, others = torch.tensor([3, 5]), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2]])
    found = mixed.of_others(rows, others)
    logits = torch.full_like(problem["routing_logits"], -100.0)
    logits[rows] = logits[rows].scatter(1, others, problem["routing_logits"][rows].gather(1, others))
    forced = {**problem.tensors, "routing_logits": logits}
    expected = problem.reference(**forced)["output"].output[rows]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_load():
    chosen = torch.tensor([[0, 3], [3, 7], [3, 1]])
    assert routing.load(Layer("Swiglu", range(2, 4)), chosen, 8) == {
        "active_experts": 4,
        "busiest_expert_share": 0.5,
        "local_active_experts": 1,
    }


def test_groups_have_scores_of_their_own():
    logits = torch.tensor([[3.0, 0.0, 2.0, 1.0]])
    choice = routing.choice_of(Router("deepseek_v3", 1, 2, 1), logits, None)
    assert choice.groups.shape == (1, 2)
    assert choice.experts.tolist() == [[2]]


def test_large_layers_are_never_copied_for_a_cold_cache():
    """The timer would rotate copies of 11 G of weights; one token's experts are more than the cache, so it sweeps."""
    _, problem = problem_of(NAME, CASE)
    assert problem.work.bytes < 1 << 25
    one_token = 8 * 3 * 7168 * 2048
    assert plan_rotation(True, one_token, 12 << 30, 50 << 20, 120 << 30).sets == 1


def test_a_bias_balances_what_it_selects():
    """Experts are those of the wanted order with the bias, and others without it."""
    generator = torch.Generator().manual_seed(3)
    wanted = torch.randn(200, 64, generator=generator)
    bias = (routing.BIAS * torch.randn(64, generator=generator)).bfloat16()
    logits = routing.balanced(wanted, bias)
    router = Router("deepseek_v3", 4)
    assert logits.dtype is torch.float32
    assert torch.equal(router.select(router.scores(logits, bias)), descending(wanted)[:, :4])
    forgotten = router.select(router.scores(logits)) == descending(wanted)[:, :4]
    assert forgotten.all(dim=1).float().mean() < 0.1
