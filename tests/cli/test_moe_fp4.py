from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import torch

from flashinfer_perf import __version__
from flashinfer_perf.cli.main import main as commands
from flashinfer_perf.cli.moe_fp4 import main
from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.moe_tool import eager
from flashinfer_perf.moe_tool.flags import ToolFlags
from flashinfer_perf.moe_tool.presets import PRESETS
from tests.cli.conftest import ROOT, Outcome, records_of, rows_of

LAUNCHER = ROOT / "benchmarks" / "kernels" / "benchmark_cutlass_fp4_moe.py"
DOCUMENTED = [
    "models",
    "tp-sizes",
    "batch-sizes",
    "limit-k",
    "limit-n",
    "limit-num-groups",
    "limit-per-act-token",
    "limit-per-out-ch",
]
QUICK = "--device cpu --models tiny --num_iters 2 --dry_run_iters 1"


@pytest.fixture
def tool(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> Outcome:
        capsys.readouterr()
        return Outcome(main(shlex.split(line)), *capsys.readouterr())

    return run


def test_the_table_is_all_of_standard_output(tool):
    outcome = tool(f"{QUICK} --batch-sizes 4 8")
    assert outcome.code == 0, outcome.err
    title, head, _, first, second, *rest = outcome.out.splitlines()
    assert title.strip("[- ]") == (
        "NVFP4 against FP8 experts; triton_moe: W8A8 in PyTorch; cutlass_moe_fp4: W4A16 fallback in PyTorch"
    )
    assert [cell.strip() for cell in head.split("|")] == ["", "triton_moe", "cutlass_moe_fp4"]
    line = "tiny, num_experts=8, topk=2, per_act_token=False per_out_ch=False, MKN="
    assert first.strip().startswith(f"{line}((4, 128, 256))")
    assert second.strip().startswith(f"{line}((8, 128, 256))")
    assert rest[-1] == (
        "[INFO] There are no CUDA graphs on the CPU: the columns triton_moe_cuda_graphs and "
        "cutlass_moe_fp4_cuda_graphs are absent."
    )
    assert outcome.err.startswith("[INFO] Case 1 of 4: triton_moe model=tiny num_tokens=4 ")
    assert outcome.err.count("[REFCHECK] Backend torch: 0/") == 4


def test_it_is_a_command_and_a_launcher(tool, capsys, launch):
    assert commands(["moe-fp4", "--version"]) == 0
    assert capsys.readouterr().out == f"flashinfer-perf {__version__}\n"
    assert launch("--version", program=LAUNCHER).out == f"flashinfer-perf {__version__}\n"


def test_help_needs_no_torch():
    code = (
        "import sys; from flashinfer_perf.cli.moe_fp4 import main; main(['--help']); "
        "print(sorted({'torch', 'numpy', 'triton', 'flashinfer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_shows_every_flag_and_preset(tool):
    text = tool("--help").out
    assert all(f"--{name} " in text for name in DOCUMENTED)
    assert {f"--{name.replace('_', '-')}" for name in specs_of(ToolFlags)} == {f"--{name}" for name in DOCUMENTED}
    assert all(re.search(rf"^  {re.escape(name)}: \d+ experts", text, re.MULTILINE) for name in PRESETS)
    assert "Default: 4 8 16 32 64 128 256 512 1024 2048." in text
    assert "--output_path CSV" in text


def test_records_go_to_the_same_files_as_those_of_routines(tool, tmp_path):
    csv, jsonl = tmp_path / "results.csv", tmp_path / "records.jsonl"
    outcome = tool(
        f"{QUICK} --batch-sizes 4 --limit-per-act-token 1 --output_path {csv} --jsonl {jsonl} --case_tag 'a b'"
    )
    assert outcome.code == 0, outcome.err
    rows = rows_of(csv)
    assert [row["routine"] for row in rows] == ["triton_moe", "cutlass_moe_fp4"]
    assert {(row["num_tokens"], row["hidden_size"], row["intermediate_size"], row["check"]) for row in rows} == {
        ("4", "128", "256", "passed")
    }
    assert [row["quant_dtype"] for row in rows] == ["fp8_e4m3", "float16"]
    assert [row["per_act_token"] for row in rows] == ["True", "True"]
    assert [record["backend"] for record in records_of(jsonl)] == ["torch", "torch"]
    repro = rows[0]["repro_command"]
    assert repro == (
        "python3 benchmark_cutlass_fp4_moe.py --models tiny --tp-sizes 1 --batch-sizes 4 --limit-per-act-token 1 "
        "--limit-per-out-ch 0 --device cpu --num_iters 2 --dry_run_iters 1 --case_tag 'a b'"
    )
    assert tool(repro.partition(".py ")[2]).code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--models tinny", f"--models: 'tinny' is not one of {', '.join(PRESETS)}. Did you mean 'tiny'?"),
        ("--models tiny --limit-k 64", "no shape is left by --limit-k 64; without filters there are tiny: 8 experts, "
         "k = 128, n = 256 (TP 1)"),
        ("--batch-sizes 0", "--batch_sizes must be at least 1, not 0"),
        ("--limit-per-out-ch 2", "--limit_per_out_ch: '2' is not one of 0, 1"),
        ("--modles tiny", "unknown flag --modles. Did you mean '--models'?"),
        (f"{QUICK} --output_path /", "cannot write results to /: it is a folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tool, line, message):
    assert tool(line) == Outcome(2, "", f"[ERROR] {message}\n")


def test_what_cannot_fit_is_refused_with_both_numbers_of_bytes(tool, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.run.engine.free_bytes", lambda machine: 1 << 19)
    outcome = tool(f"{QUICK} --batch-sizes 4")
    assert outcome.code == 1
    assert outcome.out.count("\n") == 1  # about graphs; there is no table
    assert len(re.findall(r"needs at least .* \((\d+) bytes, .* \(471859 bytes\) are free", outcome.err)) == 2


def test_a_model_on_the_cpu_comes_with_a_warning(tool, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.run.engine.free_bytes", lambda machine: 1 << 19)
    err = tool("--device cpu --batch-sizes 4").err
    assert err.startswith(
        "[INFO] On the CPU the experts of a model take minutes or hours; --models tiny takes seconds.\n"
    )


def test_a_wrong_kernel_has_no_time(tool, monkeypatch):
    monkeypatch.setattr(eager, "experts_nvfp4", lambda **tensors: tensors["output"].zero_())
    outcome = tool(f"{QUICK} --batch-sizes 4")
    assert outcome.code == 1
    assert "Output tensor mismatch from backend torch" in outcome.err
    assert "cutlass_moe_fp4:" not in outcome.out.splitlines()[0]


def test_a_gpu_that_is_not_there(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = tool("--device cuda --models tiny")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("[ERROR] --device cuda: torch ")
