"""Routing methods, against small examples worked out by hand, and the library's enumeration of them."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.moe import trtllm_call
from flashinfer_perf.routines.moe.eager import route
from flashinfer_perf.routines.moe.router import Router
from tests.routines.harness import case_of

LOGITS = torch.tensor([[0.0, 2.0, -1.0, 1.0]])


def weights_of(method, top_k=2, **more):
    router = Router(method, top_k, **more)
    experts = router.select(router.scores(LOGITS))
    return experts.tolist(), router.weights(LOGITS, experts)


def test_renormalised():
    for method in ("renormalize", "renormalize_naive"):
        experts, weights = weights_of(method)
        assert experts == [[1, 3]]
        assert torch.allclose(weights, torch.tensor([[0.7310585786, 0.2689414214]], dtype=torch.float64))


def test_topk_and_llama4():
    assert weights_of("topk", 3)[1].tolist() == [[2.0, 1.0, 0.0]]
    assert weights_of("llama4", 1)[1].item() == pytest.approx(0.8807970780)


def test_deepseek():
    experts, weights = weights_of("deepseek_v3", scaling=2.5)
    shares = [0.8807970780, 0.7310585786]
    assert experts == [[1, 3]]
    assert weights.tolist()[0] == pytest.approx([2.5 * share / sum(shares) for share in shares])


def test_the_bias_selects_and_does_not_weigh():
    router = Router("deepseek_v3", 1)
    experts = router.select(router.scores(LOGITS, torch.tensor([0.0, 0.0, 1.0, 0.0])))
    assert experts.tolist() == [[2]]
    assert router.weights(LOGITS, experts).tolist() == [[1.0]]


def test_groups_by_the_sum_of_their_two_best():
    """The best expert of all is in a group that is not."""
    scores = torch.tensor([[0.9, 0.0, 0.0, 0.5, 0.6, 0.1]], dtype=torch.float64)
    assert Router("deepseek_v3", 2, n_group=2, topk_group=1).select(scores).tolist() == [[4, 3]]
    assert Router("deepseek_v3", 2, n_group=2, topk_group=2).select(scores).tolist() == [[0, 4]]


def test_negative_scores_stay_in_their_groups():
    """Groups left out count as nothing, not as zero."""
    scores = torch.tensor([[-0.1, -0.2, -0.9, -0.8]], dtype=torch.float64)
    assert Router("deepseek_v3", 2, n_group=2, topk_group=1).select(scores).tolist() == [[0, 1]]


def test_ties_go_to_the_lower_number():
    scores = torch.zeros(1, 8)
    assert Router("topk", 3).select(scores).tolist() == [[0, 1, 2]]
    assert Router("deepseek_v3", 3, n_group=4, topk_group=2).select(scores).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("method", ["renormalize", "renormalize_naive", "topk", "llama4", "deepseek_v3"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_the_torch_backends_router_agrees(method, groups):
    n_group, topk_group = groups if method == "deepseek_v3" else (1, 1)
    router = Router(method, 4, n_group, topk_group, 1.5)
    generator = torch.Generator().manual_seed(1)
    logits, bias = torch.randn(50, 16, generator=generator), torch.randn(16, generator=generator).bfloat16()
    experts = router.select(router.scores(logits, bias))
    found, weights = torch.empty(50, 4, dtype=torch.int32), torch.empty(50, 4)
    route(router, logits, bias, found, weights)
    assert torch.equal(found.long(), experts)
    assert torch.allclose(weights.double(), router.weights(logits, experts), rtol=1e-5)


def test_defaults_of_flags():
    typed = "--num_tokens 1 --hidden_size 32 --intermediate_size 32 --num_experts 8 --top_k 2 --routing_method"
    flags = case_of("trtllm_fp8_per_tensor_scale_moe", f"{typed} deepseek_v3").flags
    assert Router.of(flags) == Router("deepseek_v3", 2, 1, 1, 2.5)
    flags = case_of("trtllm_fp8_per_tensor_scale_moe", f"{typed} topk --routed_scaling_factor 3").flags
    assert Router.of(flags) == Router("topk", 2, 1, 1, 1.0)


def test_methods_and_activations_are_the_librarys():
    enums = pytest.importorskip("flashinfer.tllm_enums")
    assert {name: enums.RoutingMethodType[theirs] for name, theirs in trtllm_call.METHODS.items()} == {
        "renormalize": 1,
        "deepseek_v3": 2,
        "llama4": 3,
        "renormalize_naive": 4,
        "topk": 5,
    }
