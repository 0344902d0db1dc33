"""What a problem of multi-head latent attention consists of."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from tests.routines.harness import GIBIBYTE, case_of, make_problem, problem_of

NAME = "BatchMLAPagedAttentionWrapper"
CASE = "--batch_size 4 --s_kv 45 --page_size 8 --num_qo_heads 4 --head_dim_ckv 128 --head_dim_kpe 64"
RANDOM = f"{CASE} --random_actual_seq_len"
FP8_CACHE, ALL_FP8 = "--kv_dtype fp8_e4m3", "--q_dtype fp8_e4m3 --kv_dtype fp8_e4m3"


# ---- The truth ----


def by_hand(problem, sequence, head, ckv, scales=(1.0, 1.0)):
    """softmax(q k / sqrt(128 + kpe)) v in fp64, token by token; all elements stand for their value times a scale."""
    q_scale, k_scale = scales
    query = problem["q"][sequence, head].double() * q_scale
    page = problem["kv_cache"].shape[1]
    tokens = [
        problem["kv_cache"][problem["block_tables"][sequence, token // page], token % page].double() * k_scale
        for token in range(int(problem["kv_len"][sequence]))
    ]
    weights = [math.exp(float(query @ token) / math.sqrt(128 + len(query) - ckv)) for token in tokens]
    return sum(weight * token[:ckv] for weight, token in zip(weights, tokens, strict=True)) / sum(weights)


@pytest.mark.parametrize(
    ("formats", "scales"),
    [
        ("", (1.0, 1.0)),
        ("--q_dtype float16 --kv_dtype float16", (1.0, 1.0)),
        (FP8_CACHE, (1.0, LARGEST["k"] / E4M3_MAX)),
        (ALL_FP8, (LARGEST["q"] / E4M3_MAX, LARGEST["k"] / E4M3_MAX)),
    ],
)
@pytest.mark.parametrize("shape", ["", "--head_dim_ckv 24 --head_dim_kpe 8"])
def test_truth_by_hand(formats, scales, shape):
    case, problem = problem_of(NAME, f"{RANDOM} {formats} {shape}")
    truth = problem.truth()["out"]
    assert truth.shape == (4, 4, case.head_dim_ckv)
    assert truth.dtype is torch.float32
    for sequence, head in ((0, 0), (1, 3), (3, 2)):
        expected = by_hand(problem, sequence, head, case.head_dim_ckv, scales)
        torch.testing.assert_close(truth[sequence, head].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_rotary_part_takes_part():
    """Upstream's zero q_pe would hide every error in the handling of kpe."""
    _, problem = problem_of(NAME, CASE)
    assert problem["q"][..., 128:].float().std() > 0.5
    assert problem["kv_cache"][..., 128:].float().std() > 0.5


@pytest.mark.parametrize("formats", [FP8_CACHE, ALL_FP8])
def test_fp8_stands_for_standard_normal_numbers(formats):
    _, problem = problem_of(NAME, f"{CASE} {formats}")
    assert float(problem["kv_cache"].float().std()) * LARGEST["k"] / E4M3_MAX == pytest.approx(1, abs=0.05)
    if formats == ALL_FP8:
        assert float(problem["q"].float().std()) * LARGEST["q"] / E4M3_MAX == pytest.approx(1, abs=0.05)


def test_queries_and_cache_are_packed():
    """As the library's direct calls want them: the latent part, then the rotary part."""
    _, problem = problem_of(NAME, RANDOM)
    assert problem["q"].shape == (4, 4, 192)
    assert problem["kv_cache"].shape == (4 * 6, 8, 192)
    assert problem["q"].is_contiguous()
    assert problem["kv_cache"].is_contiguous()
    assert problem["qo_indptr"].tolist() == [0, 1, 2, 3, 4]
    assert problem["qo_indptr"].dtype is problem["kv_len"].dtype is torch.int32


# ---- Work, facts and lines ----


@pytest.mark.parametrize(("formats", "sizes"), [("", (2, 2, 2)), (FP8_CACHE, (2, 1, 2)), (ALL_FP8, (1, 1, 2))])
def test_work_counts_actual_lengths(formats, sizes):
    """2 FLOPs for each of 2 ckv + kpe products a head and key; query, used cache and output once, FP8's in bfloat16."""
    _, problem = problem_of(NAME, f"{RANDOM} {formats}")
    keys, (q, kv, out) = int(problem["kv_len"].sum()), sizes
    assert keys < 4 * 45
    moved = 4 * 4 * 192 * q + keys * 192 * kv + 4 * 4 * 128 * out
    assert problem.work == Work(flops=2 * keys * 4 * (2 * 128 + 64), bytes=moved)
    assert problem.facts == {"avg_actual_seq_len": keys // 4}


def test_shown():
    """The documented lines, in their order."""
    _, problem = problem_of(NAME, CASE)
    assert [line.text for line in problem.shown] == [
        "Average actual seq len: 45",
        "actual_seq_lens_kv.flatten() = tensor([45, 45, 45, 45], dtype=torch.int32)",
        "q_nope.shape = torch.Size([4, 4, 128])",
        "q_pe.shape = torch.Size([4, 4, 64])",
        "q.shape = torch.Size([4, 4, 192])",
        "num_pages_per_seq = 6",
        "total_num_pages = 24",
        "block_tables.shape = torch.Size([4, 6])",
        "ckv_cache.shape = torch.Size([24, 8, 128])",
        "kpe_cache.shape = torch.Size([24, 8, 64])",
        "kv_cache.shape = torch.Size([24, 8, 192])",
        "qo_indptr.shape = torch.Size([5])",
        "kv_indptr.shape = torch.Size([5])",
        "kv_indices.shape = torch.Size([24])",
        "actual_seq_lens_kv.shape = torch.Size([4])",
        f"sm_scale = {1 / math.sqrt(192)!r}",
        "workspace_buffer.shape = torch.Size([134217728])",
    ]
    assert [line.level for line in problem.shown] == [1, *[2] * 16]


# ---- What cannot fit ----


def test_a_cache_that_cannot_fit(monkeypatch):
    """Found out by adding up, with both numbers, before anything of that size is drawn."""
    flags = f"{CASE} --batch_size 1024 --s_kv 131072 --page_size 64 --head_dim_ckv 512"
    monkeypatch.setattr("torch.randn", None)
    with pytest.raises(DoesNotFit, match="tensor 'kv_cache'") as refusal:
        make_problem(case_of(NAME, flags))
    tables, lengths, cache = 2 * 1024 * 2048 * 4, 2 * 1024 * 4, 1024 * 131072 * 576 * 2
    assert refusal.value.needed_bytes == tables + lengths + cache
    assert f"({tables + lengths + cache} bytes," in str(refusal.value)
    assert f"({int(0.9 * GIBIBYTE)} bytes) are free" in str(refusal.value)
