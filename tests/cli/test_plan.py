from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, environment

CASE_ID = re.compile(r"\b[0-9a-f]{16}\b")
GOOD = "--routine mxfp4_quantize --m {16,32} --k {64,128} --case_tag run#1  # sizes of nobody\n"
MIXED = f"""\
# a comment, then a blank line

{GOOD}
--routine fused_add_rmsnorm_quant --batch_size 2 \\
  --hidden_size 64 --use_global_scale --backends torch cuda
--routine mxfp4_quantize --m 16
--routine mxfp4_quantize --m 16 --k 63
"""


def test_a_line_for_each_case(bench, testlist):
    path = testlist(MIXED)
    outcome = bench(f"--testlist {path} --plan")
    assert (outcome.code, outcome.err) == (1, "")
    assert len(set(CASE_ID.findall(outcome.out))) == 5
    assert CASE_ID.sub("ID", outcome.out).splitlines() == [
        f"{path}:3: ID mxfp4_quantize [default: cuda] m=16 k=64  # run#1",
        f"{path}:3: ID mxfp4_quantize [default: cuda] m=16 k=128  # run#1",
        f"{path}:3: ID mxfp4_quantize [default: cuda] m=32 k=64  # run#1",
        f"{path}:3: ID mxfp4_quantize [default: cuda] m=32 k=128  # run#1",
        f"{path}:5: ID fused_add_rmsnorm_quant [torch cuda] batch_size=2 hidden_size=64  ignored: use_global_scale",
        f"[ERROR] {path}:7: missing required flag --k",
        f"[ERROR] {path}:8: mxfp4_quantize: k (63) must be divisible by the block size, 32",
        "5 cases, 2 invalid lines",
    ]


def test_as_json(bench, testlist):
    path = testlist(MIXED)
    outcome = bench(f"--testlist {path} --plan --format json --refcheck")
    entries = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(entries) == 7
    assert entries[1] == {
        "origin": f"{path}:3",
        "case_id": entries[1]["case_id"],
        "method_id": entries[0]["method_id"],
        "routine": "mxfp4_quantize",
        "backends": [],
        "flags": {"m": 16, "k": 128, "input_dtype": "bfloat16", "sf_layout": "128x4", "enable_pdl": False},
        "ignored_flags": [],
        "repro_command": "python3 flashinfer_benchmark.py --refcheck --routine mxfp4_quantize --m 16 --k 128 "
        "--case_tag 'run#1'",
    }
    assert entries[4]["backends"] == ["torch", "cuda"]
    assert entries[4]["ignored_flags"] == ["use_global_scale"]
    assert entries[5] == {"origin": f"{path}:7", "status": "invalid", "reason": "missing required flag --k"}


def test_one_case_from_the_command_line(bench):
    outcome = bench("--plan --routine mxfp4_quantize --m 16 --k 64")
    assert outcome.code == 0
    assert CASE_ID.sub("ID", outcome.out) == "ID mxfp4_quantize [default: cuda] m=16 k=64\n1 case, 0 invalid lines\n"


@pytest.mark.parametrize(
    ("text", "code", "count"),
    [
        (GOOD, 0, "4 cases, 0 invalid lines"),
        (f"{GOOD}nonsense\n", 1, "4 cases, 1 invalid line"),
        ("nonsense\n", 2, "0 cases, 1 invalid line"),
    ],
)
def test_exit_status(bench, testlist, text, code, count):
    outcome = bench(f"--plan --testlist {testlist(text)}")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (code, count)


def test_flags_beside_the_testlist_are_in_the_plan(bench, testlist):
    path = testlist("--k 64\n--k 128 --m 8\n--routine top_k_sampling_from_probs --batch_size 4 --vocab_size 100\n")
    outcome = bench(f"--plan --testlist {path} --routine mxfp4_quantize --m 32 --top_k 7")
    assert outcome.code == 0
    assert [line.partition("] ")[2] for line in outcome.out.splitlines()[:3]] == [
        "m=32 k=64",
        "m=8 k=128",
        "batch_size=4 vocab_size=100 top_k=7",
    ]


@pytest.mark.parametrize("line", ["--plan --testlist {}", "--help", "--routine mxfp4_quantize --help"])
def test_nothing_heavy_is_imported_and_no_device_is_touched(testlist, line):
    program = (
        "import sys; from flashinfer_perf.cli.bench import main; code = main(sys.argv[1:]); "
        "print(*{'torch', 'numpy', 'scipy', 'flashinfer', 'pynvml', 'cupti'} & set(sys.modules), file=sys.stderr); "
        "sys.exit(code)"
    )
    tokens = line.format(testlist(GOOD)).split()
    variables = environment(PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run([sys.executable, "-c", program, *tokens], capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (0, "\n")
