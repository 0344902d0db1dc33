"""Commands of the sampling family: what they print, and the columns of their rows."""

from __future__ import annotations

import csv
from pathlib import Path

QUICK = "--device cpu --num_iters 2 --dry_run_iters 1 --backends torch --refcheck -vv"


def test_a_sampler_prints_the_documented_lines_and_what_its_check_did(bench):
    flags = "--batch_size 512 --vocab_size 60 --top_k 20 --top_p 0.8 --filter_apply_order joint"
    outcome = bench(f"--routine top_k_top_p_sampling_from_probs {flags} {QUICK}")
    assert outcome.code == 0
    assert outcome.lines("INFO")[1] == "Running testTopKTopPSamplingFromProbs"
    assert outcome.lines("VVERBOSE")[-5:] == [
        "probs.shape = torch.Size([512, 60])",
        "probs.dtype = torch.float32",
        "top_k = 20",
        "top_p = 0.8",
        "filter_apply_order = 'joint'",
    ]
    of_output, of_draws = outcome.lines("REFCHECK")
    assert of_output == "Backend torch: 0/512 (0.00%) elements differ from the reference (samples)"
    assert of_draws.startswith(
        "Backend torch: 0/65536 (0.00%) elements differ from the reference (samples, chi-square of"
    )
    assert "the same seed gives the same tokens; other seeds give other tokens" in of_draws
    assert len(outcome.lines("PERF")) == 1


def test_rows_have_the_documented_columns(bench, tmp_path: Path):
    path = tmp_path / "out.csv"
    for line in (
        "--routine softmax --batch_size 4 --vocab_size 60 --temperature 0.7 --enable_pdl",
        "--routine min_p_sampling_from_probs --batch_size 4 --vocab_size 60 --min_p 0.2 --input_distribution peaked",
        "--routine chain_speculative_sampling --batch_size 4 --vocab_size 60 --num_speculate_tokens 2",
        "--routine top_k_ragged_transform --batch_size 4 --vocab_size 60 --max_len 70 --num_rows 9 --top_k 20",
    ):
        assert bench(f"{line} {QUICK} --output_path {path} --append").code == 0
    softmax, min_p, chain, ragged = csv.DictReader(path.open())
    assert [softmax[name] for name in ("vocab_size", "temperature", "input_dtype")] == ["60", "0.7", "float32"]
    assert (softmax["enable_pdl"], softmax["ignored_flags"]) == ("", "enable_pdl")
    assert (min_p["min_p"], min_p["input_distribution"], min_p["top_p"]) == ("0.2", "peaked", "")
    assert chain["num_speculate_tokens"] == "2"
    assert [ragged[name] for name in ("max_len", "num_rows", "top_k")] == ["70", "9", "20"]
    assert (ragged["vocab_size"], ragged["ignored_flags"]) == ("", "vocab_size")
    assert {row["check"] for row in (softmax, min_p, chain, ragged)} == {"passed"}


def test_rows_that_are_not_given_are_shown_as_the_batch_size_that_they_are(bench, tmp_path: Path):
    path = tmp_path / "out.csv"
    line = f"--routine top_k_ragged_transform --batch_size 3 --vocab_size 60 --max_len 70 --top_k 20 {QUICK} -v"
    outcome = bench(f"{line} --output_path {path}")
    assert "num_rows=3" in outcome.out
    (row,) = csv.DictReader(path.open())
    assert row["num_rows"] == "3"


def test_a_page_table_that_would_be_read_out_of_bounds_is_refused_before_anything_is_made(bench):
    outcome = bench(f"--routine top_k_page_table_transform --batch_size 4 --num_rows 5 {QUICK}")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "num_rows (5) must not exceed batch_size (4)" in outcome.err
