"""BatchDecodeWithPagedKVCacheWrapper: its problem, its checks, kernels that those must find out, and bad input.

What it calls is in test_decode_calls.py, what its backends refuse in test_decode_limits.py.
"""

from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank
from tests.fakes import texts_in
from tests.routines.attention.broken import CAUSAL, FP8_CACHE, FP8_QUERY, PAGED, broken
from tests.routines.harness import (
    GIBIBYTE,
    assert_caught,
    assert_passes,
    case_of,
    make_problem,
    problem_of,
    run,
    run_broken,
)

NAME = "BatchDecodeWithPagedKVCacheWrapper"
HEADS = "--num_qo_heads 4 --num_kv_heads 2 --head_dim_qk 32"
CASE = f"--batch_size 4 --s_kv 29 --page_size 4 --random_actual_seq_len {HEADS}"
SEVERAL = "--s_qo 3"
SAME = ["bfloat16 bfloat16", "float16 float16"]
MIXED = ["bfloat16 fp8_e4m3", "float16 fp8_e5m2"]
ALL_FP8 = ["fp8_e4m3 fp8_e4m3"]


def formats_of(formats):
    q, kv = formats.split()
    return f"--q_dtype {q} --kv_dtype {kv}"


# ---- Right kernels pass ----

LENGTHS = {
    "one token": "--batch_size 1 --s_kv 1 --page_size 1",
    "one page each": "--batch_size 3 --s_kv 64 --page_size 64 --random_actual_seq_len",
    "pages of one": "--batch_size 5 --s_kv 33 --page_size 1 --random_actual_seq_len",
    "pages of 13": "--batch_size 3 --s_kv 63 --page_size 13 --random_actual_seq_len",
    "whole pages": "--batch_size 2 --s_kv 128 --page_size 64",
    "several queries": "--batch_size 3 --s_qo 5 --s_kv 40 --page_size 13 --random_actual_seq_len",
    "queries only": "--batch_size 2 --s_qo 6 --s_kv 6 --page_size 4",
}
LAYOUTS = {
    "groups": "--num_qo_heads 6 --num_kv_heads 2 --head_dim_qk 64",
    "one kv head": "--num_qo_heads 5 --num_kv_heads 1 --head_dim_qk 80",
    "other values": "--num_qo_heads 3 --num_kv_heads 3 --head_dim_qk 24 --head_dim_vo 40",
}


@pytest.mark.parametrize("formats", [*SAME, *MIXED, *ALL_FP8])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_torch_passes(lengths, layout, formats):
    assert_passes(run(NAME, f"{LENGTHS[lengths]} {LAYOUTS[layout]} {formats_of(formats)}", "torch"))


def test_a_kernel_that_nothing_was_done_to_passes():
    """Or that the others are caught would show nothing."""
    for formats in (*SAME, *MIXED, *ALL_FP8):
        kernel = broken(NAME, lambda attend, **call: attend(**call))
        assert_passes(run_broken(NAME, kernel, f"{CASE} {formats_of(formats)}"))


# ---- Wrong kernels are caught ----

FOR_FORMATS = {
    SAME[0]: PAGED,
    SAME[1]: PAGED,
    MIXED[0]: [*PAGED, *FP8_CACHE],
    MIXED[1]: [*PAGED, *FP8_CACHE],
    ALL_FP8[0]: [*PAGED, *FP8_CACHE, *FP8_QUERY],
}


def named(change):
    return getattr(change, "__name__", None)


@pytest.mark.parametrize(
    ("formats", "change"), [(formats, change) for formats, changes in FOR_FORMATS.items() for change in changes],
    ids=named,
)  # fmt: skip
def test_a_broken_kernel_is_caught(formats, change):
    assert_caught(run_broken(NAME, broken(NAME, change), f"{CASE} {formats_of(formats)}"))


@pytest.mark.filterwarnings("ignore:Lower right causal bias")  # of keys that are fewer than the queries
@pytest.mark.parametrize("formats", [SAME[0], *ALL_FP8])
@pytest.mark.parametrize("change", [*PAGED, *CAUSAL], ids=named)
def test_a_broken_kernel_is_caught_with_several_queries(change, formats):
    assert_caught(run_broken(NAME, broken(NAME, change), f"{CASE} {SEVERAL} {formats_of(formats)}"))


# ---- The problem ----

EVEN = "--batch_size 3 --s_kv 40 --page_size 8 --num_qo_heads 4 --num_kv_heads 2 --head_dim_qk 64 --head_dim_vo 32"


@pytest.mark.parametrize(("formats", "sizes"), [(SAME[0], (2, 2, 2)), (MIXED[0], (2, 1, 2)), (ALL_FP8[0], (1, 1, 2))])
def test_work_of_one_query_each(formats, sizes):
    """2 FLOPs for each of 64 + 32 products a head and key; FP8 queries give bfloat16."""
    _, problem = problem_of(NAME, f"{EVEN} {formats_of(formats)}")
    q, kv, out = sizes
    moved = 3 * 4 * 64 * q + 3 * 40 * 2 * (64 + 32) * kv + 3 * 4 * 32 * out
    assert problem.work == Work(flops=2 * 3 * 40 * 4 * (64 + 32), bytes=moved)
    assert problem.facts == {"avg_actual_seq_len": 40}


def test_work_of_several_queries():
    """The documented count under a mask, q (2 kv - q) / 2 pairs, beside the exact one, q (2 kv - q + 1) / 2."""
    _, problem = problem_of(NAME, f"{EVEN} --s_qo 5")
    assert problem.work.flops == 3 * 5 * (80 - 5) * 4 * (64 + 32)
    assert problem.work.bytes == 2 * (15 * 4 * 64 + 3 * 40 * 2 * (64 + 32) + 15 * 4 * 32)
    pairs = sum(40 - 5 + 1 + query for query in range(5))
    assert problem.facts == {"avg_actual_seq_len": 40, "exact_flops": 2 * 3 * pairs * 4 * (64 + 32)}


def test_work_counts_actual_lengths():
    _, problem = problem_of(NAME, f"{EVEN} --random_actual_seq_len --batch_size 2")
    first, second = problem["kv_len"].tolist()
    assert problem.work.flops == 2 * (first + second) * 4 * (64 + 32)
    assert problem.facts["avg_actual_seq_len"] == (first + second) // 2
    assert first + second < 80


def test_the_sequences_hold_their_queries():
    _, problem = problem_of(NAME, "--batch_size 64 --s_qo 7 --s_kv 8 --page_size 4 --random_actual_seq_len " + HEADS)
    assert set(problem["kv_len"].tolist()) == {7, 8}


DOCUMENTED = "--page_size 16 --batch_size 32 --s_qo 1 --s_kv 1024 --num_qo_heads 64 --num_kv_heads 1 --head_dim_qk 128"


def test_shown():
    """The lines of the documents' example, but for lengths, one kv head, and the device."""
    _, problem = problem_of(NAME, f"{DOCUMENTED} --head_dim_vo 128")
    line = ", ".join(["1024"] * 12)
    assert [line.text for line in problem.shown] == [
        "Average actual seq len: 1024",
        f"actual_seq_lens_kv.flatten() = tensor([{line},\n        {line},\n        {line[:46]}], dtype=torch.int32)",
        "q.shape = torch.Size([32, 64, 128])",
        "num_pages_per_seq = 64",
        "total_num_pages = 2048",
        "kv_cache.shape = torch.Size([2048, 2, 1, 16, 128])",
        "kv_cache.stride() = (4096, 2048, 128, 128, 1)",
        "block_tables.shape = torch.Size([32, 64])",
        "kv_indptr.shape = torch.Size([33])",
        "kv_indices.shape = torch.Size([2048])",
        "kv_last_page_len.shape = torch.Size([32])",
        "scale = 0.08838834764831843",
    ]
    assert [line.level for line in problem.shown] == [1, *[2] * 11]


def test_lengths_are_the_documented_ones():
    """Those of prefill, drawn with the bare seed; decoding's were drawn on a GPU."""
    _, problem = problem_of(
        NAME, "--batch_size 4 --s_kv 1024 --page_size 16 --num_qo_heads 1 --num_kv_heads 1 --head_dim_qk 2"
        " --random_actual_seq_len",
    )  # fmt: skip
    assert problem["kv_len"].tolist() == [103, 436, 861, 271]
    assert problem.shown[0].text == "Average actual seq len: 417"


# ---- Names ----


@pytest.mark.parametrize(("typed", "meant"), [("trtllm", "trtllm-gen"), ("trtllm-gen-native", "trtllm-native")])
def test_former_names_of_backends(typed, meant):
    case = case_of(NAME, f"{CASE} --backends {typed} torch")
    assert case.backends == (meant, "torch")
    said = texts_in(list(run_case(case, SingleRank())), "WARNING")
    assert said[0] == f"Backend name '{typed}' has been renamed to '{meant}' and will be removed in a future release."


LATENT = "--batch_size 2 --s_kv 9 --num_qo_heads 2 --page_size 4 --head_dim_ckv 16 --head_dim_kpe 8"


@pytest.mark.parametrize(
    ("name", "flags", "hint"),
    [
        ("BatchPrefillWithPagedKVCacheWrapper", f"{CASE} --s_qo 3", "trtllm-gen"),
        ("BatchPrefillWithRaggedKVCacheWrapper", f"{CASE} --s_qo 3", "trtllm-native"),
        ("BatchMLAPagedAttentionWrapper", LATENT, "trtllm-native"),
    ],
)
def test_the_bare_former_name_is_of_decoding_only(name, flags, hint):
    with pytest.raises(InvalidInput, match=f"'trtllm' is not one of .*Did you mean '{hint}'"):
        case_of(name, f"{flags} --backends trtllm")


# ---- Bad input ----


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--page_size 0", "--page_size must be at least 1, not 0"),
        ("--head_dim_qk 0", "--head_dim_qk must be at least 1, not 0"),
        ("--head_dim_vo 0", "--head_dim_vo must be at least 1, not 0"),
        ("--s_qo 30", r"s_qo \(30\) must not be above s_kv \(29\)"),
        ("--num_qo_heads 5", r"num_kv_heads \(2\) must divide num_qo_heads \(5\)"),
        ("--num_qo_heads 1", r"num_kv_heads \(2\) must divide num_qo_heads \(1\)"),
        ("--q_dtype float32", "--q_dtype: 'float32' is not one of bfloat16, float16, fp8_e4m3, fp8_e5m2"),
        ("--kv_dtype int8", "--kv_dtype: 'int8' is not one of bfloat16, float16, fp8_e4m3, fp8_e5m2"),
    ],
)
def test_bad_values(typed, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(NAME, f"{CASE} {typed}")


@pytest.mark.parametrize("missing", ["page_size", "head_dim_qk", "batch_size", "s_kv", "num_qo_heads", "num_kv_heads"])
def test_missing_flags(missing):
    typed = f"{CASE} ".split(f"--{missing} ")
    with pytest.raises(InvalidInput, match=f"missing required flag --{missing}"):
        case_of(NAME, typed[0] + typed[1].partition(" ")[2])


def test_formats_that_no_backend_takes():
    record = run(NAME, f"{CASE} --q_dtype float16 --kv_dtype bfloat16", "torch")
    assert record.status is Status.UNSUPPORTED
    assert record.reason == "it needs kv_dtype the same as q_dtype, or FP8"


def test_a_pool_that_cannot_fit(monkeypatch):
    """Found out by adding up, with both numbers: the pool's 4 TiB, and what is before it, of 0.9 GiB."""
    flags = "--batch_size 1024 --s_kv 131072 --page_size 64 --num_qo_heads 64 --num_kv_heads 64 --head_dim_qk 128"
    monkeypatch.setattr("torch.randn", None)
    with pytest.raises(DoesNotFit, match=r"tensor 'kv_cache'") as refusal:
        make_problem(case_of(NAME, flags))
    tables, lengths, pool = 2 * 1024 * 2048 * 4, 2 * 1024 * 4, 1024 * 131072 * 64 * (128 + 128) * 2
    assert refusal.value.needed_bytes == tables + lengths + pool
    assert refusal.value.available_bytes == int(0.9 * GIBIBYTE)
    assert f"({tables + lengths + pool} bytes," in str(refusal.value)
    assert f"({int(0.9 * GIBIBYTE)} bytes) are free" in str(refusal.value)


@pytest.mark.parametrize(
    ("typed", "first"), [("--s_kv 1000000000", "block_tables"), ("--batch_size 1000000000000", "sequence.lengths")]
)
def test_what_comes_before_the_pool_is_counted_too(typed, first):
    with pytest.raises(DoesNotFit, match=f"tensor '{first}'"):
        make_problem(case_of(NAME, f"{CASE} {typed}"))


def test_the_engine_says_what_cannot_fit():
    record = run(NAME, f"{CASE} --s_kv 1000000000000", "torch")
    assert record.status is Status.OUT_OF_MEMORY
    assert "are free for inputs" in record.reason
