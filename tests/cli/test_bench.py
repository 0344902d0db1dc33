"""Command lines from beginning to end: which cases they mean, and what is said about them."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import LAUNCHER, environment, records_of, rows_of

QUICK = "--device cpu --num_iters 2 --dry_run_iters 0"
MXFP4 = "--routine mxfp4_quantize --m 16 --k 64"
MLA = (
    "--routine BatchMLAPagedAttentionWrapper --batch_size 2 --s_kv 9 --num_qo_heads 2 "
    "--head_dim_ckv 16 --head_dim_kpe 8"
)
TOP_K = "--routine top_k_sampling_from_probs --batch_size 2 --vocab_size 60"
NO_GPU = "it needs a CUDA GPU of compute capability 10.x, 11.x or 12.x, and this run is on 'cpu'"
TO_REPRODUCE = "To reproduce this test case, run the following command: "


def planned(bench, line: str) -> list[dict]:
    """What a command line means."""
    outcome = bench(f"{line} --plan --format json")
    return [json.loads(entry) for entry in outcome.out.splitlines()]


# ---- one case


def test_the_default_backend_gives_way_to_one_that_can_run_and_that_is_said(bench):
    outcome = bench(f"{MXFP4} {QUICK}")
    assert outcome.code == 0
    assert outcome.lines("WARNING") == [f"The default backend cuda cannot run here: {NO_GPU}. Using torch instead."]
    assert outcome.lines("PERF")[0].startswith("torch          :: median time ")


def test_a_backend_asked_for_that_cannot_run_is_skipped(bench, tmp_path):
    path = tmp_path / "out.csv"
    outcome = bench(f"{MXFP4} {QUICK} --backends cuda torch --output_path {path}")
    assert outcome.code == 0
    assert outcome.lines("WARNING") == [f"cuda for routine mxfp4_quantize cannot run: {NO_GPU}. Skipping."]
    assert [(row["backend"], row["status"]) for row in rows_of(path)] == [("cuda", "unsupported"), ("torch", "ok")]


def test_verbose_shows_what_took_effect(bench):
    outcome = bench(f"{MXFP4} {QUICK} -vv --refcheck --backends torch")
    info = outcome.lines("INFO")
    assert info[0].startswith("args = Namespace(routine='mxfp4_quantize', ")
    assert info[1] == "Running testMxfp4Quantize"
    assert info[2].startswith("FlashInfer version: ")
    assert outcome.lines("VVERBOSE")[0] == "gpu_name = 'cpu'"
    assert "input_tensor.shape = torch.Size([16, 64])" in outcome.lines("VVERBOSE")
    assert [line.partition(" elements")[0] for line in outcome.lines("REFCHECK")] == [
        "Backend torch: 0/1024 (0.00%)",
        "Backend torch: 0/32 (0.00%)",
    ]


def test_flags_that_the_routine_does_not_read_are_named_and_not_validated(bench):
    outcome = bench(f"{MXFP4} {QUICK} --do_shuffle --batch_size nonsense --backends torch")
    assert outcome.code == 0
    assert outcome.lines("WARNING") == [
        "--do_shuffle is ignored: mxfp4_quantize does not read it.",
        "--batch_size is ignored: mxfp4_quantize does not read it.",
    ]


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("-R mxfp4_quantize --m 16 --k 64 -n5 -d 1", f"{MXFP4} --num_iters 5 --dry_run_iters 1"),
        (f"{MXFP4} --num_it=5 --dry_run 1 --refch", f"{MXFP4} --num_iters 5 --dry_run_iters 1 --refcheck"),
        (f"{MXFP4} --input float16 --back torch", f"{MXFP4} --input_dtype float16 --backends torch"),
        (f"{MLA} --p 4", f"{MLA} --page_size 4"),
        (f"{TOP_K} --f joint", f"{TOP_K} --filter_apply_order joint"),
        (f"{MXFP4} --m 32 --k=96", "--routine mxfp4_quantize --m 32 --k 96"),
        (f"{MXFP4} --no_sf --no-refcheck", f"{MXFP4} --no_sf_swizzled_layout"),
    ],
)
def test_abbreviations_mean_what_they_mean_in_the_routines_family(bench, line, same):
    """``--m`` is a size though ``--max_time`` begins with it, ``--p`` a page size though ``--plan`` does."""
    entries = ("case_id", "method_id", "ignored_flags", "backends")
    (found,), (expected,) = planned(bench, line), planned(bench, same)
    assert [found.get(name) for name in entries] == [expected.get(name) for name in entries]


def test_a_switch_is_turned_off_by_its_negation(bench):
    outcome = bench(f"{MXFP4} {QUICK} --refcheck --no-refcheck --backends torch")
    assert outcome.code == 0
    assert outcome.lines("REFCHECK") == []


def test_phases_and_facts_of_a_run_without_mpirun(bench, tmp_path):
    path = tmp_path / "out.csv"
    flags = "--num_tokens 4 --hidden_size 16 --num_experts 4 --top_k 2 --per_phase_timing"
    outcome = bench(f"--routine moe_a2a_dispatch_combine {flags} {QUICK} --refcheck --output_path {path}")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.lines("PERF")] == ["a2a_dispatch", "a2a_combine", "a2a_total"]
    assert any(line.startswith("gloo on 1 rank, which exchanges with none") for line in outcome.lines("INFO"))
    assert rows_of(path)[0]["ep_size"] == "1"


# ---- testlists


def test_a_bad_line_among_good_ones(bench, testlist, tmp_path):
    path = testlist(
        f"# two good ones, three bad ones\n{MXFP4} --backends torch\n\n--routine mxfp4_quantize --m 16 --kk 3\n"
        f"{MXFP4} --backends torch cuda --num_iters 0\n{MXFP4} 'open\n{MXFP4} --m 32 --backends torch  # the last one\n"
    )
    results = tmp_path / "out.csv"
    outcome = bench(f"--testlist {path} {QUICK} --output_path {results}")
    assert outcome.code == 1
    assert outcome.err == ""
    assert outcome.lines("ERROR") == [
        "Error running test: --routine mxfp4_quantize --m 16 --kk 3",
        f"Error: {path}:4: unknown flag --kk. Did you mean '--k'?",
        f"Error running test: {MXFP4} --backends torch cuda --num_iters 0",
        f"Error: {path}:5: --num_iters must be at least 1, not 0",
        f"Error running test: {MXFP4} 'open",
        f"Error: {path}:6: no closing '",
    ]
    assert [(row["origin"], row["status"], row["reason"], row["m"]) for row in rows_of(results)] == [
        (f"{path}:2", "ok", "", "16"),
        (f"{path}:4", "invalid", "unknown flag --kk. Did you mean '--k'?", ""),
        (f"{path}:5", "invalid", "--num_iters must be at least 1, not 0", ""),
        (f"{path}:6", "invalid", "no closing '", ""),
        (f"{path}:7", "ok", "", "32"),
    ]


def test_all_lines_are_parsed_before_any_runs(bench, testlist):
    """Else the last line's mistake would be found after an hour."""
    path = testlist(f"{MXFP4} --backends torch\n--routine mxfp4_quantize\n")
    assert [entry.get("status") for entry in planned(bench, f"--testlist {path}")] == [None, "invalid"]


def test_a_sweep_is_the_cross_product(bench, testlist, tmp_path):
    path, results = testlist("--routine mxfp4_quantize --m {4,8} --k {64,96} --backends torch\n"), tmp_path / "out.csv"
    assert bench(f"--testlist {path} {QUICK} --output_path {results}").code == 0
    assert [(row["m"], row["k"]) for row in rows_of(results)] == [("4", "64"), ("4", "96"), ("8", "64"), ("8", "96")]


def test_flags_beside_the_testlist_are_defaults_that_a_line_overrides(bench, testlist, tmp_path):
    path = testlist(f"{MXFP4}\n{MXFP4} --no-refcheck\n{MXFP4} -n 4 --case_tag own\n{TOP_K}\n")
    results = tmp_path / "out.csv"
    outcome = bench(
        f"--testlist {path} --refcheck --device cpu -n 3 -d0 --case_tag 'all of them' --top_k 9 --m 5 --backends torch "
        f"--output_path {results}"
    )
    assert outcome.code == 0
    columns = ("check", "samples", "case_tag", "m", "top_k")
    assert [tuple(row[name] for name in columns) for row in rows_of(results)] == [
        ("passed", "3", "all of them", "16", ""),
        ("not_checked", "3", "all of them", "16", ""),
        ("passed", "4", "own", "16", ""),
        ("passed", "3", "all of them", "", "9"),
    ]


def test_no_refcheck_beside_the_testlist_is_a_default_too(bench, testlist):
    path = testlist(f"{MXFP4} --refcheck --backends torch\n{MXFP4} --backends torch\n")
    outcome = bench(f"--testlist {path} --no-refcheck {QUICK}")
    assert [line.split()[1] for line in outcome.lines("REFCHECK")] == ["torch:"] * 2, "packed and scales, of one case"


def test_the_routine_may_stand_beside_the_testlist(bench, testlist):
    path = testlist("--m 4 --k 64\n--m 8 --k 64\n")
    assert [entry["flags"]["m"] for entry in planned(bench, f"--testlist {path} -R mxfp4_quantize")] == [4, 8]


@pytest.mark.parametrize("flag", ["--m 7", "--f joint"])
def test_what_is_meant_for_one_family_does_not_become_a_general_flag(bench, testlist, flag):
    """``--max_time`` and ``--format`` begin like flags of some families, which have older rights."""
    path = testlist(f"{MXFP4}\n{MLA} --page_size 4\n{TOP_K}\n")
    alone, beside = planned(bench, f"--testlist {path}"), planned(bench, f"--testlist {path} {flag}")
    assert [entry["method_id"] for entry in beside] == [entry["method_id"] for entry in alone]


@pytest.mark.parametrize("flag", ["--o", "--out", "--output", "--output_path"])
def test_every_prefix_of_output_path_keeps_its_meaning_beside_a_testlist(bench, testlist, tmp_path, flag):
    path = testlist(f"{MXFP4} --backends torch\n--routine fused_add_rmsnorm_quant --batch_size 2 --hidden_size 16\n")
    assert bench(f"--testlist {path} {flag} {tmp_path}/out.csv {QUICK}").code == 0
    assert len(rows_of(tmp_path / "out.csv")) == 2


def test_flags_of_the_run_have_no_effect_on_a_line_and_that_is_said(bench, testlist, tmp_path):
    path = testlist(f"{MXFP4} --backends torch --output_path {tmp_path}/line.csv --append\n")
    outcome = bench(f"--testlist {path} {QUICK}")
    assert outcome.code == 0
    assert outcome.lines("WARNING") == [
        "--output_path is ignored: it counts on the command line only.",
        "--append is ignored: it counts on the command line only.",
    ]
    assert not (tmp_path / "line.csv").exists()


def test_a_testlist_from_standard_input(bench, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{MXFP4}\n".encode())))
    assert [entry["origin"] for entry in planned(bench, "--testlist -")] == ["-:1"]


# ---- the repro command


def repro_commands(outcome) -> list[str]:
    return [line.removeprefix(TO_REPRODUCE) for line in outcome.lines("INFO") if line.startswith(TO_REPRODUCE)]


@pytest.mark.parametrize(
    "text",
    [
        f"{MXFP4} --input_dtype float16\n",
        "--routine mxfp4_quantize --m {4,8} --k {64,96} --case_tag run#1\n",
        f"""{MXFP4} -vv --case_tag "it's a \\"tag\\" with \\$HOME and 'quotes'" --random_seed 7\n""",
        f"{MLA} --page_size 4 --random_actual_seq_len --no-causal\n",
        f"{TOP_K} --case_tag=--looks-like-a-flag --target_precision 50%\n",
    ],
)
def test_a_repro_command_runs_again_as_the_same_case(bench, testlist, tmp_path, text):
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    path = testlist(text)
    outcome = bench(f"--testlist {path} {QUICK} --backends torch --generate_repro_command --jsonl {first}")
    commands, records = repro_commands(outcome), records_of(first)
    assert [record["repro_command"] for record in records] == commands
    for command in commands:
        assert command.startswith("python3 flashinfer_benchmark.py --")
        assert bench(f"{command.removeprefix('python3 flashinfer_benchmark.py ')} --append --jsonl {again}").code == 0
    same = ("case_id", "method_id", "backend", "case")
    for before, after in zip(records, records_of(again), strict=True):
        assert [before[name] for name in same] == [after[name] for name in same]
        assert before["options"] | {"routine": ""} == after["options"] | {"routine": ""}


@pytest.mark.slow
def test_a_repro_command_can_be_pasted_into_a_shell(bench, testlist, tmp_path):
    tag = """two  words, "both" 'quotes', $HOME, `date` and \\"""
    path = testlist(f"{MXFP4} --case_tag {shlex.quote(tag)}\n")
    (command,) = repro_commands(bench(f"--testlist {path} {QUICK} --generate_repro_command"))
    python = tmp_path / "python3"
    python.symlink_to(sys.executable)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        f"{command} --jsonl {tmp_path}/again.jsonl",
        shell=True, check=True, cwd=LAUNCHER.parent, env=environment(PATH=search), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (record,) = records_of(tmp_path / "again.jsonl")
    assert record["options"]["case_tag"] == tag
    assert record["case_id"] == planned(bench, MXFP4)[0]["case_id"]


def test_without_being_asked_for_it_is_not_printed_but_recorded(bench, tmp_path):
    path = tmp_path / "out.csv"
    outcome = bench(f"{MXFP4} {QUICK} --backends torch --output_path {path}")
    assert repro_commands(outcome) == []
    assert rows_of(path)[0]["repro_command"] == f"python3 flashinfer_benchmark.py {MXFP4} {QUICK} --backends torch"
