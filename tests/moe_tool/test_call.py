from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from flashinfer_perf.moe_tool.call import moe_fp4, nvfp4_moe_quant_config, plan_of
from tests.moe_tool.layers import NVFP4_LAYER


def test_it_is_a_mixture_of_experts_in_vllms_order():
    layer = NVFP4_LAYER.made()
    output = layer.call()
    assert (output.shape, output.dtype) == (layer.a.shape, torch.float16)
    assert layer.is_right(output)
    assert not layer.is_right(output.roll(1, 0))


def test_the_documented_programme():
    """As it is written for vLLM, on a smaller layer; randn has no e4m3, so that it is rounded to it."""
    num_experts, k, n, m = 8, 128, 256, 16
    generator = torch.Generator().manual_seed(1)
    w1_fp4 = torch.randint(0, 256, (num_experts, 2 * n, k // 2), dtype=torch.uint8, generator=generator)
    w2_fp4 = torch.randint(0, 256, (num_experts, k, n // 2), dtype=torch.uint8, generator=generator)
    w1_blockscale = torch.randn((num_experts, 2 * n, k // 16), generator=generator).div(64).to(torch.float8_e4m3fn)
    w2_blockscale = torch.randn((num_experts, k, n // 16), generator=generator).div(64).to(torch.float8_e4m3fn)
    w1_gs, w2_gs, a1_gs, a2_gs = (torch.ones((num_experts,), dtype=torch.float32) for _ in range(4))
    quant_config = nvfp4_moe_quant_config(
        a1_gscale=a1_gs,
        a2_gscale=a2_gs,
        w1_scale=w1_blockscale,
        w2_scale=w2_blockscale,
        g1_alphas=w1_gs,
        g2_alphas=w2_gs,
    )
    a = torch.randn((m, k), generator=generator).half()
    topk_weights = torch.randn((m, 8), generator=generator).half()
    topk_ids = torch.randint(0, num_experts, (m, 8), dtype=torch.int32, generator=generator)
    output = moe_fp4(
        a=a,
        w1_fp4=w1_fp4,
        w2_fp4=w2_fp4,
        topk_weights=topk_weights,
        topk_ids=topk_ids,
        m=m,
        n=n,
        k=k,
        e=num_experts,
        quant_config=quant_config,
    )
    assert output.shape == (m, k)
    assert output.isfinite().all()
    assert output.float().norm() > 0


def test_weights_are_brought_into_order_once():
    layer = NVFP4_LAYER.made()
    first = layer.call()
    layer.config.w1_scale.view(torch.uint8).zero_()
    assert torch.equal(layer.call(), first)
    assert layer.call(w1_fp4=layer.w1.clone()).float().norm() == 0


def test_plans_share_a_copy_of_the_weights_for_each_dtype():
    pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")
    layer = NVFP4_LAYER.made()

    def plan(m: int, dtype: torch.dtype, config=layer.config):
        return plan_of(config, layer.w1, layer.w2, (m, layer.n, layer.k, layer.e), layer.top_k, dtype)

    few, many, bf16 = plan(4, torch.float16), plan(64, torch.float16), plan(4, torch.bfloat16)
    assert (few.num_tokens, many.num_tokens, bf16.num_tokens) == (4, 64, 4)
    assert few.weights is many.weights
    assert (few.weights.dtype, bf16.weights.dtype) == (torch.float16, torch.bfloat16)
    assert plan(4, torch.float16) is few
    assert plan(4, torch.float16, replace(layer.config)).weights is not few.weights


def test_ids_of_64_bits_and_weights_of_32_are_taken():
    layer = NVFP4_LAYER.made()
    assert torch.equal(layer.call(topk_ids=layer.ids.long(), topk_weights=layer.weights.float()), layer.call())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 6}, "a must be (6, 64) float16 or bfloat16, not (5, 64) float16"),
        ({"k": 72}, "k (72) and n (192) must be multiples of 16"),
        ({"e": 3}, "w1_fp4 must be (3, 384, 32) uint8, not (4, 384, 32) uint8"),
        ({"topk_ids": torch.zeros(5, 2)}, "topk_ids must be (5, 2) int32 or int64, not (5, 2) float32"),
        ({"topk_weights": torch.zeros(5, 3)}, "topk_weights must be (5, 2) float16"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NVFP4_LAYER.made().call(**changes)


def test_scales_row_by_row_are_refused_where_tiles_are_larger():
    layer = NVFP4_LAYER.made()
    by_rows = replace(layer.config, w2_scale=layer.config.w2_scale[:, :64])
    with pytest.raises(ValueError, match=re.escape("w2_scale must be (4, 128, 12) float8_e4m3fn, not (4, 64, 12)")):
        layer.call(quant_config=by_rows)
