"""What goes wrong on purpose, with the words that it is said in and the exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from benchmarks.bench_harness import smallest
from flashinfer_perf.cli import bench as program
from flashinfer_perf.core.record import Record, Status
from flashinfer_perf.routines import all_routines
from flashinfer_perf.sinks.console import Console
from tests.cli.conftest import LAUNCHER, environment, records_of, rows_of

MXFP4 = "--routine mxfp4_quantize --m 16 --k 64"
MLA = "--routine BatchMLAPagedAttentionWrapper --batch_size 2 --s_kv 9 --num_qo_heads 2 --page_size 4"
MLA += " --head_dim_ckv 16 --head_dim_kpe 8"
TOP_K = "--routine top_k_sampling_from_probs --batch_size 4 --vocab_size 60"
QUICK = "--device cpu --num_iters 2 --dry_run_iters 0"
ABSURD = 10**15
DTYPES = "bfloat16, float16"
SEE_LIST = "--list shows all with their backends"
OF_TOP_K = "--backends of top_k_sampling_from_probs"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # flags
        (f"{MXFP4} --bach_size 3", "unknown flag --bach_size. Did you mean '--batch_size'?"),
        (f"{MXFP4} --zzz=3", "unknown flag --zzz; see --help"),
        (f"{MXFP4} -x", "unknown flag -x; see --help"),
        (f"{MXFP4} --top_k 4", "--top_k is a flag of moe, moe_comm and sampling routines, not of quantization ones"),
        (f"{MXFP4} --causal", "--causal is a flag of attention routines, not of quantization ones"),
        (f"{MXFP4} --no 3", "ambiguous flag --no: it could be --no_cuda_graph, --no_sf_swizzled_layout"),
        (f"{MXFP4} 7", "stray word '7': no flag before it takes it"),
        # routines
        ("--m 16 --k 64", "--routine is missing; --list shows all routines"),
        ("--routine mxfp4_quant", f"unknown routine 'mxfp4_quant'. Did you mean 'mxfp4_quantize'? {SEE_LIST}"),
        ("--routine zzz", f"unknown routine 'zzz'. {SEE_LIST}"),
        # backends and formats
        (f"{TOP_K} --backends cudo", f"{OF_TOP_K}: 'cudo' is not one of cuda, torch. Did you mean 'cuda'?"),
        (f"{TOP_K} --backends torch fa2", f"{OF_TOP_K}: 'fa2' is not one of cuda, torch"),
        (f"{MXFP4} --input_dtype fp32", f"--input_dtype: 'fp32' is not one of {DTYPES}"),
        (f"{MXFP4} --input_dtype float32", f"--input_dtype: 'float32' is not one of {DTYPES}. Did you mean 'float16'?"),
        (
            f"{MLA} --q_dtype fp8_e5m2",
            f"--q_dtype: 'fp8_e5m2' is not one of {DTYPES}, fp8_e4m3. Did you mean 'fp8_e4m3'?",
        ),
        # missing
        ("--routine mxfp4_quantize --m 16", "missing required flag --k"),
        ("--routine mxfp4_quantize", "missing required flags --m, --k"),
        # sizes
        ("--routine mxfp4_quantize --m 0 --k 64", "--m must be at least 1, not 0"),
        ("--routine mxfp4_quantize --m -16 --k 64", "--m must be at least 1, not -16"),
        ("--routine mxfp4_quantize --m 1e3 --k 64", "--m takes a whole number, not '1e3'"),
        ("--routine mxfp4_quantize --m '' --k 64", "--m takes a whole number, not ''"),
        (
            "--routine mxfp4_quantize --m '{1,2}' --k 64",
            "--m takes a whole number, not '{1,2}'; sweeps in braces belong in a testlist, unquoted",
        ),
        ("--routine mxfp4_quantize --m 16 --k 65", "mxfp4_quantize: k (65) must be divisible by the block size, 32"),
        (f"{TOP_K} --top_k {ABSURD}", f"top_k_sampling_from_probs: top_k ({ABSURD}) must not exceed vocab_size (60)"),
        (f"{MLA} --s_qo 2", "--s_qo: '2' is not one of 1"),
        # general options
        (f"{MXFP4} --num_iters 0", "--num_iters must be at least 1, not 0"),
        (f"{MXFP4} -d -1", "--dry_run_iters must be at least 0, not -1"),
        (f"{MXFP4} --cache hot", "--cache: 'hot' is not one of cold, warm"),
        (f"{MXFP4} --format xml", "--format: 'xml' is not one of text, table, json"),
        (f"{MXFP4} --device gpu", "--device: 'gpu' is not a device; give auto, cpu, cuda or cuda:N"),
        (
            f"{MXFP4} --target_precision 5",
            "--target_precision: '5' is not a precision; give a percentage such as 1% or a fraction such as 0.01",
        ),
        (f"{MXFP4} --max_time 0", "--max_time: '0' is not a time; give seconds such as 90, or 200ms, 1.5m"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_understood(bench, line, message):
    outcome = bench(line)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"[ERROR] {message}\n")


@pytest.mark.parametrize("option", ["--m", "-n", "--case_tag", "--backends"])
def test_a_flag_without_its_value_is_named(bench, option):
    outcome = bench(f"{MXFP4} {option}")
    assert outcome.code == 2
    assert re.fullmatch(rf"\[ERROR\] (--num_iters/)?{option}: expected (at least )?one argument\n", outcome.err)


# ---- sizes that no machine has


def size_flags() -> list[tuple[str, str]]:
    """Every flag of every routine that takes a whole number without upper end."""
    return [
        (routine.name, spec.name)
        for routine in all_routines().values()
        for spec in routine.specs.values()
        if spec.type is int and not spec.choices
    ]


@pytest.mark.parametrize(("name", "flag"), size_flags())
def test_an_absurd_size_ends_with_both_byte_counts_or_breaks_a_rule(bench, tmp_path, name, flag):
    path = tmp_path / "out.jsonl"
    outcome = bench(f"--routine {name} {smallest(all_routines()[name])} --{flag} {ABSURD} {QUICK} --jsonl {path}")
    if outcome.code == 2:
        assert re.fullmatch(rf"\[ERROR\] {name}: {flag} \({ABSURD}\) must .*\n", outcome.err)
        return
    assert outcome.code == 1
    (record,) = records_of(path)
    assert record["status"] == "out_of_memory"
    counts = re.search(r" \((\d+) bytes, .* tensor '\w+'\), but .* \((\d+) bytes\) ", record["reason"])
    assert counts is not None, record["reason"]
    assert int(counts[1]) >= ABSURD > int(counts[2])
    assert outcome.lines("ERROR")[1] == f"Error: {record['reason']}"


def test_what_is_refused_is_not_allocated(bench, monkeypatch, tmp_path):
    allocated = []
    monkeypatch.setattr("flashinfer_perf.run.engine.free_bytes", lambda machine: 10 << 20)
    monkeypatch.setattr("flashinfer_perf.run.factory.torch.randn", lambda *_, **__: allocated.append(1))
    path = tmp_path / "out.csv"
    outcome = bench(f"--routine mxfp4_quantize --m 4096 --k 4096 {QUICK} --backends torch cuda --output_path {path}")
    assert outcome.code == 1
    assert allocated == []
    assert outcome.lines("ERROR")[1] == (
        "Error: needs at least 40.5 MiB (42467328 bytes, up to and including tensor 'x'), "
        "but 9 MiB (9437184 bytes) are free for inputs; take smaller sizes, or a device with more memory"
    )
    assert {row["backend"]: row["status"] for row in rows_of(path)} == {"cuda": "unsupported", "torch": "out_of_memory"}


# ---- testlists


def test_a_testlist_that_is_missing(bench, tmp_path):
    outcome = bench(f"--testlist {tmp_path}/none.txt --output_path {tmp_path}/out.csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"[ERROR] cannot read testlist {tmp_path}/none.txt: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []


def test_a_testlist_that_is_a_folder(bench, tmp_path):
    outcome = bench(f"--testlist {tmp_path}")
    assert (outcome.code, outcome.err) == (2, f"[ERROR] cannot read testlist {tmp_path}: Is a directory\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n   # but comments\n"])
def test_a_testlist_without_a_case(bench, testlist, text):
    path = testlist(text)
    outcome = bench(f"--testlist {path}")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"[ERROR] testlist {path} holds no test case\n")


def test_a_testlist_that_is_not_utf8(bench, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(f"{MXFP4}\n{MXFP4} --case_tag ".encode() + "größer\n".encode("latin-1"))
    outcome = bench(f"--testlist {path}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"[ERROR] testlist {path} is not UTF-8: byte 0xf6 in line 2; save it as UTF-8\n"


@pytest.mark.parametrize("word", ["-h", "--help", "--list", "--plan", "--testlist x"])
def test_a_line_that_asks_for_something_else_than_a_case_does_not_end_the_run(bench, testlist, tmp_path, word):
    path, results = testlist(f"{MXFP4} {word}\n{MXFP4} --backends torch\n"), tmp_path / "out.csv"
    outcome = bench(f"--testlist {path} {QUICK} --output_path {results}")
    assert outcome.code == 1
    reason = f"{word.split()[0]} belongs on the command line, not in a testlist"
    assert outcome.lines("ERROR") == [f"Error running test: {MXFP4} {word}", f"Error: {path}:1: {reason}"]
    assert [(row["status"], row["reason"]) for row in rows_of(results)] == [("invalid", reason), ("ok", "")]


def test_nothing_but_bad_lines(bench, testlist):
    outcome = bench(f"--testlist {testlist('nonsense')} {QUICK}")
    assert outcome.code == 2
    assert outcome.lines("ERROR")[0] == "Error running test: nonsense"


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("other.txt", "stray word 'other.txt': no flag before it takes it"),
        ("-x", "unknown flag -x; see --help"),
        ("--bach_size 7", "unknown flag --bach_size. Did you mean '--batch_size'?"),
        ("--num_iters 0", "--num_iters must be at least 1, not 0"),
    ],
)
def test_what_stands_beside_a_testlist_is_not_passed_over(bench, testlist, beside, message):
    path = testlist(f"{MXFP4}\n{MLA}\n")
    outcome = bench(f"--testlist {path} {beside}")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"[ERROR] {message}\n")


# ---- result files


@pytest.mark.parametrize("option", ["--output_path", "--jsonl"])
def test_a_result_file_that_cannot_be_written_is_said_before_anything_is_measured(bench, tmp_path, option):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "file" / "out", "its folder is a file")):
        outcome = bench(f"{MXFP4} {QUICK} {option} {path}")
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err == f"[ERROR] cannot write results to {path}: {reason}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_without_permission(bench, tmp_path):
    tmp_path.chmod(0o500)
    outcome = bench(f"{MXFP4} {QUICK} --output_path {tmp_path}/out.csv")
    assert (outcome.code, outcome.err) == (
        2,
        f"[ERROR] cannot write results to {tmp_path}/out.csv: permission denied\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("option", ["--output_path", "--jsonl"])
def test_a_full_disk_costs_the_file_and_not_the_run(bench, testlist, tmp_path, option):
    path = testlist(f"{MXFP4} --backends torch\n" * 2)
    outcome = bench(f"--testlist {path} {QUICK} {option} /dev/full")
    assert outcome.code == 1
    assert outcome.lines("ERROR") == [
        "cannot write results to /dev/full: No space left on device. The run goes on without this file."
    ]
    assert len(outcome.lines("PERF")) == 2


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_standard_output_on_a_full_disk():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, str(LAUNCHER), "--list", "--device", "cpu"]
        done = subprocess.run([*command, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert (done.returncode, done.stderr) == (1, "[ERROR] cannot write to standard output: No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error(testlist):
    path = testlist(f"{MXFP4} --random_seed {sweep(2000)}\n")
    command = [sys.executable, str(LAUNCHER), "--plan", "--testlist", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 1


def test_a_terminal_that_cannot_show_a_character_shows_its_number(launch, testlist):
    path = testlist(f"{MXFP4} --case_tag größe\n")
    outcome = launch(f"--plan --testlist {path}", env=environment(PYTHONIOENCODING="ascii"))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0].endswith("# gr\\xf6\\xdfe")
    assert launch("--help", env=environment(PYTHONIOENCODING="ascii")).code == 0


def sweep(count: int) -> str:
    """So many values."""
    return "{" + ",".join(map(str, range(count))) + "}"


# ---- interruptions


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(testlist, tmp_path):
    path = testlist(f"{MXFP4} --backends torch --random_seed {sweep(2000)}\nnonsense\n")
    csv, jsonl = tmp_path / "out.csv", tmp_path / "out.jsonl"
    files = ["--output_path", str(csv), "--jsonl", str(jsonl)]
    command = [sys.executable, str(LAUNCHER), "--testlist", str(path), "--device", "cpu", *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        while not (line := run.stdout.readline()).startswith("[PERF]"):
            assert line, "the run ended before it measured anything"
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err == ""
    assert "Traceback" not in out
    measured = 1 + sum(line.startswith("[PERF]") for line in out.splitlines())
    assert [line for line in out.splitlines() if line.startswith("[ERROR]")] == [
        "[ERROR] Interrupted. What was measured is kept.",
        "[ERROR] Error running test: nonsense",
        f"[ERROR] Error: {path}:2: --routine is missing; --list shows all routines",
    ]
    rows = rows_of(csv)
    assert [row["status"] for row in rows] == ["ok"] * measured + ["interrupted"] * (2000 - measured) + ["invalid"]
    assert {row["reason"] for row in rows if row["status"] == "interrupted"} == {"interrupted by Ctrl-C"}
    assert [record["status"] for record in records_of(jsonl)] == [row["status"] for row in rows]


def test_ctrl_c_between_two_files_waits_until_the_record_is_in_both(bench, monkeypatch, testlist, tmp_path):
    def take(self, event, take=Console.take):
        take(self, event)
        if isinstance(event, Record) and event.status is Status.OK:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Console, "take", take)
    path, csv, jsonl = testlist(f"{MXFP4} --backends torch\n" * 3), tmp_path / "out.csv", tmp_path / "out.jsonl"
    outcome = bench(f"--testlist {path} {QUICK} --output_path {csv} --jsonl {jsonl}")
    assert outcome.code == 130
    assert len(outcome.lines("PERF")) == 1
    assert [row["status"] for row in rows_of(csv)] == ["ok", "interrupted", "interrupted"]
    assert [record["status"] for record in records_of(jsonl)] == ["ok", "interrupted", "interrupted"]


def test_ctrl_c_before_there_is_anything_to_keep(bench, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "all_routines", interrupted)
    outcome = bench(MXFP4)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "[ERROR] Interrupted.\n")


# ---- what this machine does not have


def test_no_gpu_with_a_backend_that_needs_one(bench, tmp_path):
    path = tmp_path / "out.csv"
    outcome = bench(f"{MLA} --backends fa2 {QUICK} --output_path {path}")
    reason = "it needs a CUDA GPU of compute capability 8.0 or newer, and this run is on 'cpu'"
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        f"[WARNING] fa2 for routine BatchMLAPagedAttentionWrapper cannot run: {reason}. Skipping.",
        "[ERROR] No backends to test. Exiting. Try --backends torch.",
    ]
    (row,) = rows_of(path)
    assert (row["backend"], row["status"], row["reason"]) == ("fa2", "unsupported", reason)
    assert row["median_time"] == ""


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there(bench, monkeypatch, tmp_path, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "out.csv"
    outcome = bench(f"{MXFP4} --backends torch cuda --device {device} --output_path {path}")
    assert outcome.code == 1
    error = outcome.lines("ERROR")[1]
    assert error.startswith(f"Error: --device {device}: torch ")
    assert error.endswith(" sees no CUDA GPU here; use --device cpu")
    assert [(row["backend"], row["status"]) for row in rows_of(path)] == [
        ("torch", "unsupported"),
        ("cuda", "unsupported"),
    ]


def test_a_gpu_of_a_number_that_is_not_there(bench, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    outcome = bench(f"{MXFP4} --device cuda:2")
    assert outcome.lines("ERROR")[1] == "Error: --device cuda:2: there are 2 GPUs, numbered from 0"


def test_flashinfer_is_not_installed(bench, hopper, without_flashinfer, tmp_path):
    path = tmp_path / "out.csv"
    outcome = bench(f"{TOP_K} --backends cuda --output_path {path}")
    reason = "flashinfer is not installed; install it with: pip install 'flashinfer-perf[flashinfer]'"
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        f"[WARNING] cuda for routine top_k_sampling_from_probs cannot run: {reason}. Skipping.",
        "[ERROR] No backends to test. Exiting. Try --backends torch.",
    ]
    (row,) = rows_of(path)
    assert (row["status"], row["reason"]) == ("unsupported", reason)


def test_a_gpu_too_old_and_no_flashinfer_either(bench, hopper, without_flashinfer):
    """What cannot be mended is said first."""
    outcome = bench(f"{MXFP4} --backends cuda")
    assert outcome.lines("WARNING") == [
        "cuda for routine mxfp4_quantize is not supported on compute capability 9.0. Skipping."
    ]


def test_several_processes_without_mpi4py(bench, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr("flashinfer_perf.run.ranks.is_installed", lambda module: False)
    outcome = bench(f"{MXFP4} {QUICK}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "[ERROR] 2 processes were started, but mpi4py is not installed; "
        "install it with: pip install 'flashinfer-perf[mpi]'\n"
    )
