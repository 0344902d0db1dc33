"""NVFP4 experts in our kernels' order: what moves where, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.kernels.moe.fp4_order import inner_rows
from flashinfer_perf.kernels.moe.fp4_weights import PreparedFp4, prepared
from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, scales_of, words_of
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

EXPERTS, HIDDEN, INTERMEDIATE = 2, 128, 64
each_dtype = pytest.mark.parametrize("dtype", PACKINGS)


def weights() -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randint(1, 127, shape, dtype=torch.uint8, generator=generator)  # noqa: E731
    first, second = (EXPERTS, 2 * INTERMEDIATE, HIDDEN), (EXPERTS, HIDDEN, INTERMEDIATE)
    elements = (random(*shape[:2], shape[2] // 2) for shape in (first, second))
    scales = (random(*shape[:2], shape[2] // 16) for shape in (first, second))
    return ExpertWeights(ExpertFormat.NVFP4, *elements, *scales, torch.ones(EXPERTS), torch.ones(EXPERTS))


@each_dtype
@pytest.mark.parametrize(("name", "inner"), [("w1", True), ("w2", False)])
@pytest.mark.parametrize("quad", [0, 5])
@pytest.mark.parametrize("thread", range(4))
def test_a_thread_has_its_rows_next_to_each_other(dtype, name, inner, quad, thread):
    """Of 16 rows and 64 columns: words of two bytes of one row and two of the other, and both rows' scales."""
    given = weights()
    made = prepared(given, dtype)
    expert, block, chunk = 1, 2, 0
    rows = torch.tensor([16 * block + quad, 16 * block + quad + 8])
    rows = inner_rows(INTERMEDIATE, gated=True)[rows] if inner else rows
    old, old_scale = getattr(given, name)[expert, rows], getattr(given, f"{name}_scale")[expert, rows]
    new, new_scale = (getattr(made, field)[expert].view(-1) for field in (name, f"{name}_scale"))
    lane = 4 * quad + thread
    columns = getattr(given, name).shape[2] * 2
    start = (block * columns // 64 + chunk) * 32 + lane
    own = old[:, 32 * chunk + 8 * thread :][:, :8].view(2, 4, 2).transpose(0, 1).reshape(-1)
    assert torch.equal(new[16 * start : 16 * start + 16].view(-1, 4), words_of(own, PACKINGS[dtype]).view(-1, 4))
    assert torch.equal(new_scale[2 * start : 2 * start + 2], scales_of(old_scale[:, 4 * chunk + thread]))


@each_dtype
def test_a_scale_of_zero_makes_its_elements_zeros(dtype):
    given = weights()
    given.w2_scale[0, 3, 1] = 0
    changed = (prepared(given, dtype).w2 != prepared(weights(), dtype).w2).nonzero()
    made = prepared(given, dtype).w2[tuple(changed.T)]
    assert 0 < len(changed) <= 16
    assert (changed[:, 0] == 0).all()
    zeros = weights()
    zeros.w2[0, 3, 8:16] = 0
    assert torch.equal(made, prepared(zeros, dtype).w2[tuple(changed.T)])


@each_dtype
def test_the_sign_of_a_scale_goes_to_its_elements(dtype):
    """NVFP4's have none, but E4M3 holds one."""
    given, opposite = weights(), weights()
    given.w1_scale[1, 7, 2] |= 0x80
    opposite.w1[1, 7, 16:24] ^= 0x88
    made, expected = prepared(given, dtype), prepared(opposite, dtype)
    assert torch.equal(made.w1, expected.w1)
    assert torch.equal(made.w1_scale, expected.w1_scale)
    assert not torch.equal(made.w1, prepared(weights(), dtype).w1)


@each_dtype
def test_what_is_given_stays_as_it_is_and_what_is_prepared_is_taken(dtype):
    given, same = weights(), weights()
    made = prepared(given, dtype)
    assert isinstance(made, PreparedFp4)
    assert made.dtype == dtype
    assert prepared(made, dtype) is made
    for name in ("w1", "w2", "w1_scale", "w2_scale"):
        assert torch.equal(getattr(given, name), getattr(same, name))


def test_words_for_one_dtype_are_others_for_another_and_scales_are_the_same():
    bf16, fp16 = (prepared(weights(), dtype) for dtype in (torch.bfloat16, torch.float16))
    for name in ("w1", "w2"):
        assert not torch.equal(getattr(bf16, name), getattr(fp16, name))
        assert torch.equal(getattr(bf16, f"{name}_scale"), getattr(fp16, f"{name}_scale"))


PLANS = {"num_tokens": 2, "top_k": 1, "num_experts": EXPERTS}


def test_no_plan_takes_words_for_another_dtype():
    bf16, fp16 = (prepared(weights(), dtype) for dtype in (torch.bfloat16, torch.float16))
    message = "dtype is torch.float16 and the NVFP4 weights are prepared for torch.bfloat16: give"
    with pytest.raises(ValueError, match=message):
        prepared(bf16, torch.float16)
    with pytest.raises(ValueError, match=message):
        TritonExperts(bf16, **PLANS, dtype=torch.float16)
    plan = TritonExperts(fp16, **PLANS, dtype=torch.float16)
    assert plan.weights is fp16
    with pytest.raises(ValueError, match=message):
        plan.use(bf16)
    assert plan.weights is fp16


def test_there_are_no_words_for_other_dtypes():
    with pytest.raises(ValueError, match=r"dtype is torch\.float32: give bfloat16 or float16"):
        prepared(weights(), torch.float32)
