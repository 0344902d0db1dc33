"""BatchMLAPagedAttentionWrapper: its checks, kernels that those must find out, and bad input.

What its problem consists of is in test_mla_inputs.py, what it calls in test_mla_calls.py, what its backends refuse in
test_mla_limits.py.
"""

from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.record import Status
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank
from tests.fakes import texts_in
from tests.routines.attention.broken import broken
from tests.routines.attention.broken_latent import FP8_CACHE, FP8_QUERY, MLA
from tests.routines.harness import assert_caught, assert_passes, case_of, run, run_broken

NAME = "BatchMLAPagedAttentionWrapper"
CASE = "--batch_size 4 --s_kv 29 --page_size 8 --random_actual_seq_len --num_qo_heads 4"
CASE += " --head_dim_ckv 256 --head_dim_kpe 64"
SAME = ["bfloat16 bfloat16", "float16 float16"]
MIXED = ["bfloat16 fp8_e4m3"]
ALL_FP8 = ["fp8_e4m3 fp8_e4m3"]
MIXED_16 = "--q_dtype bfloat16 --kv_dtype float16"


def formats_of(formats):
    q, kv = formats.split()
    return f"--q_dtype {q} --kv_dtype {kv}"


# ---- Right kernels pass, wrong ones are caught ----


@pytest.mark.parametrize("formats", [*SAME, *MIXED, *ALL_FP8])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --s_kv 1 --page_size 1",
        "--batch_size 3 --s_kv 1 --page_size 4",
        "--batch_size 7 --s_kv 33 --page_size 1 --random_actual_seq_len",
        "--batch_size 2 --s_kv 5 --page_size 32 --random_actual_seq_len",
        "--batch_size 3 --s_kv 64 --page_size 16",
        "--batch_size 3 --s_kv 63 --page_size 13 --random_actual_seq_len",
        "--batch_size 2 --s_kv 700 --page_size 32 --random_actual_seq_len",
    ],
)
@pytest.mark.parametrize("shape", ["4 128 64", "1 7 1", "16 512 64"])
def test_torch_passes(flags, shape, formats):
    heads, ckv, kpe = shape.split()
    shaped = f"{flags} --num_qo_heads {heads} --head_dim_ckv {ckv} --head_dim_kpe {kpe}"
    assert_passes(run(NAME, f"{shaped} {formats_of(formats)}", "torch"))


BROKEN = {
    SAME[0]: MLA,
    SAME[1]: MLA,
    MIXED[0]: [*MLA, *FP8_CACHE],
    ALL_FP8[0]: [*MLA, *FP8_CACHE, *FP8_QUERY],
}


@pytest.mark.parametrize(
    ("formats", "change"),
    [(formats, change) for formats, changes in BROKEN.items() for change in changes],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_broken_kernel_is_caught(formats, change):
    """Many heads: what one key does to an FP8 output shows only where its weight is large."""
    assert_caught(run_broken(NAME, broken(NAME, change), f"{CASE} --num_qo_heads 128 {formats_of(formats)}"))


# ---- Names, and bad input ----


def test_the_former_name_of_a_backend():
    case = case_of(NAME, f"{CASE} --backends trtllm-gen-native torch")
    assert case.backends == ("trtllm-native", "torch")
    said = texts_in(list(run_case(case, SingleRank())), "WARNING")
    assert said[0] == (
        "Backend name 'trtllm-gen-native' has been renamed to 'trtllm-native' and will be removed in a future release."
    )


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--page_size 0", "--page_size must be at least 1, not 0"),
        ("--s_qo 2", "--s_qo: '?2'? is not one of 1"),
        ("--q_dtype fp8_e5m2", "--q_dtype: 'fp8_e5m2' is not one of bfloat16, float16, fp8_e4m3"),
        ("--kv_dtype fp8_e5m2", "--kv_dtype: 'fp8_e5m2' is not one of bfloat16, float16, fp8_e4m3"),
    ],
)
def test_bad_values(typed, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(NAME, f"{CASE} {typed}")


@pytest.mark.parametrize("missing", ["page_size", "head_dim_ckv", "head_dim_kpe", "num_qo_heads", "s_kv"])
def test_missing_flags(missing):
    typed = f"{CASE} ".split(f"--{missing} ")
    with pytest.raises(InvalidInput, match=f"missing required flag --{missing}"):
        case_of(NAME, typed[0] + typed[1].partition(" ")[2])


def test_formats_that_torch_does_not_mix():
    record = run(NAME, f"{CASE} {MIXED_16}", "torch")
    assert record.status is Status.UNSUPPORTED
    assert record.reason == "it needs kv_dtype the same as q_dtype, or FP8"
