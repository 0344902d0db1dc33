"""Bytes by the documented formulas, lines of -vv and columns of the CSV."""

from __future__ import annotations

import csv
import shlex

import pytest

from flashinfer_perf.cli.bench import main
from flashinfer_perf.core.work import Work
from tests.routines.harness import case_of, problem_of

SHAPE = "--batch_size 2 --seq_len 3 --num_qo_heads 5 --num_kv_heads 2 --head_dim 64"
T, S, HQ, HK, D, R, N = 6, 3, 5, 2, 64, 32, 32
PARTIAL = f"{SHAPE} --rotary_dim 32"
BOTH = f"{PARTIAL} --no_rope_dim 32"
IN, OUT = 2, 1

BYTES = [
    ("apply_rope", PARTIAL, 2 * T * (HQ + HK) * D * IN),
    ("apply_llama31_rope", PARTIAL, 2 * T * (HQ + HK) * D * IN),
    ("apply_rope_pos_ids", PARTIAL, 2 * T * (HQ + HK) * D * IN + 4 * T),
    ("apply_llama31_rope_pos_ids", PARTIAL, 2 * T * (HQ + HK) * D * IN + 4 * T),
    ("apply_rope_with_cos_sin_cache", PARTIAL, 2 * T * (HQ + HK) * D * IN + S * R * 4 + 8 * T),
    ("mla_rope_quantize_fp8", f"{SHAPE} --no_rope_dim 32", T * (HQ + 1) * (R + N) * (IN + OUT) + S * R * 4 + 4 * T),
    ("rope_quantize_fp8", BOTH, T * (HQ + HK) * (R + N) * (IN + OUT) + S * R * 4 + 4 * T),
    ("rope_quantize_fp8", SHAPE, T * (HQ + HK) * D * (IN + OUT) + S * D * 4 + 4 * T),
    (
        "rope_quantize_fp8_append_paged_kv_cache",
        PARTIAL,
        T * (HQ + HK) * R * IN
        + T * HK * D * IN
        + T * (HQ + HK) * N * IN
        + T * HQ * N * OUT
        + S * R * 4
        + 4 * T
        + T * HQ * R * OUT
        + 2 * T * HK * D * OUT,
    ),
]


@pytest.mark.parametrize(("name", "flags", "expected"), BYTES)
def test_work(name, flags, expected):
    _, problem = problem_of(name, flags)
    assert problem.work == Work(flops=0, bytes=expected)


def size(*sizes):
    return f"torch.Size([{', '.join(map(str, sizes))}])"


QK = [f"q.shape = {size(T, HQ, D)}", f"k.shape = {size(T, HK, D)}"]
SEQUENCES = [f"indptr.shape = {size(3)}", f"offsets.shape = {size(2)}"]
POS_IDS = [f"pos_ids.shape = {size(T)}"]
PLAIN = ["rotary_dim = 32", "rope_scale = 1.0", "rope_theta = 10000.0", "interleave = False"]
LLAMA31 = ["low_freq_factor = 1.0", "high_freq_factor = 4.0", "old_context_len = 8192"]
CACHE = f"cos_sin_cache.shape = {size(S, R)}"
PARTS = [
    f"q_rope.shape = {size(T, HQ, R)}",
    f"k_rope.shape = {size(T, HK, R)}",
    f"q_nope.shape = {size(T, HQ, N)}",
    f"k_nope.shape = {size(T, HK, N)}",
]
SHOWN = [
    ("apply_rope", PARTIAL, [*QK, *SEQUENCES, *PLAIN]),
    ("apply_rope_pos_ids", PARTIAL, [*QK, *POS_IDS, *PLAIN]),
    ("apply_llama31_rope", PARTIAL, [*QK, *SEQUENCES, *PLAIN, *LLAMA31]),
    ("apply_llama31_rope_pos_ids", PARTIAL, [*QK, *POS_IDS, *PLAIN, *LLAMA31]),
    (
        "apply_rope_with_cos_sin_cache",
        PARTIAL,
        [
            f"q.shape = {size(T, HQ * D)}",
            f"k.shape = {size(T, HK * D)}",
            CACHE,
            f"positions.shape = {size(T)}",
            "is_neox = True",
        ],
    ),
    (
        "mla_rope_quantize_fp8",
        f"{SHAPE} --no_rope_dim 32 --interleave",
        [
            PARTS[0],
            f"k_rope.shape = {size(T, R)}",
            PARTS[2],
            f"k_nope.shape = {size(T, N)}",
            CACHE,
            *POS_IDS,
            "rope_dim = 32",
            "no_rope_dim = 32",
            "is_neox = False",
        ],
    ),
    (
        "rope_quantize_fp8",
        BOTH,
        [*PARTS, CACHE, *POS_IDS, "rotary_dim = 32", "no_rope_dim = 32", "is_neox = True"],
    ),
    (
        "rope_quantize_fp8",
        PARTIAL,
        [
            *PARTS[:2],
            "q_nope.shape = None",
            "k_nope.shape = None",
            CACHE,
            *POS_IDS,
            "rotary_dim = 32",
            "no_rope_dim = 0",
            "is_neox = True",
        ],
    ),
    (
        "rope_quantize_fp8_append_paged_kv_cache",
        f"{PARTIAL} --page_size 2 --kv_layout HND",
        [
            *PARTS,
            f"v.shape = {size(T, HK, D)}",
            CACHE,
            *POS_IDS,
            f"k_cache.shape = {size(4, HK, 2, D)}",
            f"v_cache.shape = {size(4, HK, 2, D)}",
            f"kv_indices.shape = {size(4)}",
            f"kv_indptr.shape = {size(3)}",
            f"batch_indices.shape = {size(T)}",
            f"positions.shape = {size(T)}",
            "rotary_dim = 32",
            "no_rope_dim = 32",
            "is_neox = True",
            "page_size = 2",
            "kv_layout = 'HND'",
        ],
    ),
]


@pytest.mark.parametrize(("name", "flags", "expected"), SHOWN)
def test_shown(name, flags, expected):
    _, problem = problem_of(name, flags)
    assert [line.text for line in problem.shown] == expected


SIZES = {"seq_len": "3", "num_qo_heads": "5", "head_dim": "64", "interleave": "False"}
COLUMNS = [
    ("apply_rope", PARTIAL, {"num_kv_heads": "2", "rotary_dim": "32", "rope_theta": "10000.0", "rope_scale": "1.0"}),
    ("apply_rope_with_cos_sin_cache", SHAPE, {"num_kv_heads": "2", "rotary_dim": "64", "rope_theta": ""}),
    (
        "mla_rope_quantize_fp8",
        f"{SHAPE} --no_rope_dim 32",
        {"no_rope_dim": "32", "quant_dtype": "fp8_e4m3", "rotary_dim": "", "ignored_flags": "num_kv_heads"},
    ),
    ("rope_quantize_fp8", BOTH, {"rotary_dim": "32", "no_rope_dim": "32", "quant_dtype": "fp8_e4m3"}),
    (
        "rope_quantize_fp8_append_paged_kv_cache",
        PARTIAL,
        {"rotary_dim": "32", "no_rope_dim": "32", "page_size": "16", "kv_layout": "NHD", "quant_scale_q": "1.0"},
    ),
]


@pytest.mark.parametrize(("name", "flags", "expected"), COLUMNS)
def test_columns(name, flags, expected, tmp_path, capsys):
    path = tmp_path / "out.csv"
    quick = "--device cpu --num_iters 2 --dry_run_iters 0 --backends torch --refcheck"
    assert main(shlex.split(f"--routine {name} {flags} {quick} --output_path {path}")) == 0
    assert capsys.readouterr().err == ""
    (row,) = csv.DictReader(path.open())
    assert {key: row[key] for key in {**SIZES, **expected}} == {**SIZES, **expected}
    assert (row["flops"], row["tflops"], row["check"]) == ("0", "0.0", "passed")


def test_ids_keep_their_meaning():
    """Flags at their defaults, ours among them, change no id."""
    name = "rope_quantize_fp8"
    assert case_of(name, BOTH).case_id == case_of(name, f"{BOTH} --quant_scale_q 1 --page_size 16").case_id
    assert case_of(name, BOTH).case_id != case_of(name, f"{BOTH} --quant_scale_q 2").case_id
