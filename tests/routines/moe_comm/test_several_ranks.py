"""moe_a2a_dispatch_combine and allreduce_fusion under mpirun and torchrun, through the real program."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.routines.allreduce_comm import broken as reductions
from tests.routines.moe_comm.broken import ON_SEVERAL_RANKS
from tests.routines.moe_comm.launched import (
    LAUNCHER,
    MPIRUN,
    broken_backends,
    mpirun,
    needs_mpi,
    rows_in,
    started,
)

pytestmark = [pytest.mark.mpi, needs_mpi]
NAME = "moe_a2a_dispatch_combine"
REDUCTION = "allreduce_fusion"
CASE = "--num_tokens 24 --hidden_size 128 --num_experts 8 --top_k 3"
TESTLIST = f"""
--routine {NAME} {CASE} --validate --per_phase_timing --num_iters 3
--routine {NAME} {CASE} --validate --quant_dtype {{fp8,nvfp4,fp8_block_scale}} --num_iters 2 --backends gloo whole
--routine {NAME} --num_tokens {{1,33}} --hidden_size 5 --num_experts 8 --top_k 1 --validate --num_iters 2
--routine {NAME} {CASE} --max_num_tokens 40 --validate --input_dtype float16 --target_precision 20% --max_time 50ms
--routine {NAME} --num_tokens 4 --hidden_size 8 --num_experts 13 --top_k 1 --validate
--routine {NAME} {CASE} --refcheck --num_iters 2
--routine {NAME} {CASE} --quant_dtype {{nvfp4,fp8_block_scale}} --real_math --intermediate_size 128 --validate -n 2
--routine {REDUCTION} --pattern {{allreduce,ar_residual_rmsnorm}} --num_tokens 9 --hidden_size 64 --validate -n 2
"""


def run_testlist(ranks: int, folder: Path) -> tuple[list[dict[str, str]], str, int]:
    testlist, output = folder / "cases.txt", folder / "out.csv"
    testlist.write_text(TESTLIST)
    path = broken_backends(folder, "moe_comm", "whole")
    status, text = mpirun(ranks, "--testlist", testlist, "--output_path", output, path=path)
    assert [file.name for file in folder.glob("out*")] == ["out.csv"], text
    return rows_in(output), text, status


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_format_on_ranks_of_a_cpu(ranks, tmp_path):
    """All in one start, which takes seconds: phases, formats, unusual routings, and lines that are wrong."""
    rows, text, status = run_testlist(ranks, tmp_path)
    good = [row for row in rows if row["num_experts"] == "8"]
    assert {(row["status"], row["check"]) for row in good} == {("ok", "passed")}, text
    assert [row["phase"] for row in rows[:4]] == ["a2a_dispatch", "a2a_combine", "a2a_total", "a2a_total"]
    dispatch, combine, total = rows[:3]
    assert int(float(total["bytes"])) == int(total["dispatch_bytes"]) + int(total["combine_bytes"])
    assert (dispatch["bytes"], combine["bytes"]) == (dispatch["dispatch_bytes"], combine["combine_bytes"])
    assert {(row["ranks"], row["ep_size"]) for row in good} == {(str(ranks), str(ranks))}
    reductions = [row for row in rows if row["routine"] == REDUCTION]
    assert [(row["status"], row["check"], row["tp_ranks"]) for row in reductions] == [("ok", "passed", str(ranks))] * 2
    assert [row["exchange"] for row in rows[3:9]] == ["packed", "whole"] * 3
    if ranks == 1:
        assert (total["bytes"], total["rank_skew"], status) == ("0", "", 0)
        return
    assert float(total["rank_max"]) >= float(total["rank_median"]) >= float(total["rank_min"]) > 0
    assert float(total["rank_skew"]) >= 0
    (invalid,) = [row for row in rows if row["num_experts"] == "13"]
    assert invalid["status"] == "invalid"
    assert f"num_experts (13) must be divisible by the number of ranks ({ranks})" in invalid["reason"]
    assert status == 1
    labels = [line.split()[1] for line in text.splitlines() if line.startswith("[PERF]")]
    assert labels[:4] == ["a2a_dispatch", "a2a_combine", "a2a_total", "a2a_total"]
    assert len(labels) == len(good) + len(reductions)


def test_broken_exchanges_between_ranks_are_caught(tmp_path):
    """Also those in which only one rank, perhaps not the one that reports, is wrong."""
    testlist, output = tmp_path / "cases.txt", tmp_path / "out.csv"
    testlist.write_text(
        f"--routine {NAME} {CASE} --validate --num_iters 2 --backends gloo {' '.join(ON_SEVERAL_RANKS)}\n"
        f"--routine {REDUCTION} --pattern ar_residual_rmsnorm --num_tokens 9 --hidden_size 64 --validate --num_iters 2 "
        f"--backends gloo {' '.join(reductions.ON_SEVERAL_RANKS)}\n"
    )
    broken_backends(tmp_path, "allreduce_comm", *reductions.ON_SEVERAL_RANKS)
    path = broken_backends(tmp_path, "moe_comm", *ON_SEVERAL_RANKS)
    status, text = mpirun(2, "--testlist", testlist, "--output_path", output, path=path)
    found = {(row["routine"], row["backend"]): (row["status"], row["check"]) for row in rows_in(output)}
    assert found.pop((NAME, "gloo")) == found.pop((REDUCTION, "gloo")) == ("ok", "passed"), text
    wrong = [*((NAME, name) for name in ON_SEVERAL_RANKS), *((REDUCTION, name) for name in reductions.ON_SEVERAL_RANKS)]
    assert found == dict.fromkeys(wrong, ("mismatch", "mismatch")), text
    assert status == 1


WRONG_SENDER = "tokens_to_the_wrong_rank"
MISMATCH = f"ERROR: Output tensor mismatch from backend {WRONG_SENDER}:"
FIGURES = "[INFO] The reported achieved tflops/tb_per_sec is the aggregate FLOPS/bandwidth of all participating ranks, "
FAILED = [
    f"[VALIDATE][Rank 0] {MISMATCH} 640/3072 (20.83%) elements differ (out",
    f"[VALIDATE][Rank 0] {MISMATCH} 9/44 (20.45%) elements differ (validation; dispatch, drawn: of 44 rows 5 are "
    "missing, 0 came twice, 4 do not belong here, 0 have other contents)",
    f"[VALIDATE][Rank 1] {MISMATCH} 640/3072 (20.83%) elements differ (out",
    f"[VALIDATE][Rank 1] {MISMATCH} 9/43 (20.93%) elements differ (validation; dispatch, drawn: of 43 rows 4 are "
    "missing, 0 came twice, 5 do not belong here, 0 have other contents)",
    "[VALIDATE] FAILED: Validation errors detected",
]


def test_a_dispatch_that_sends_tokens_astray_in_the_documented_lines(tmp_path):
    """Said once, by the first rank, of each rank. Nothing is timed, unless a mismatch is allowed."""
    testlist = tmp_path / "cases.txt"
    line = f"--routine {NAME} {CASE} --validate --num_iters 2 --backends"
    testlist.write_text(f"{line} {WRONG_SENDER}\n{line} {WRONG_SENDER} --allow_output_mismatch\n{line} gloo\n")
    status, text = mpirun(2, "--testlist", testlist, path=broken_backends(tmp_path, "moe_comm", WRONG_SENDER))
    ours = [line for line in text.splitlines() if line.startswith(("[INFO]", "[VALIDATE]", "[ERROR]", "[PERF]"))]
    said = [line for line in ours if not line.startswith("[INFO] Case")]
    running, timed = "[INFO] Running validation before benchmarking...", ["[INFO] ", "[PERF] a2a_total", FIGURES]
    expected = [
        *(running, *FAILED, "[ERROR] Validation failed. Aborting benchmark."),
        *(running, *FAILED, *timed),
        *(running, "[VALIDATE] PASSED: All ranks validated successfully", *timed),
    ]
    assert [line[: len(start)] for line, start in zip(said, expected, strict=True)] == expected
    assert status == 1


@pytest.mark.parametrize(("how", "said"), [("killed", "KILLED BY SIGNAL: 9"), ("raises", "fallen off the bus")])
def test_a_rank_that_fails_ends_all_of_them_with_its_error(how, said, tmp_path):
    """The first rank waits for it in a collective; what was measured before is kept."""
    output = tmp_path / "out.csv"
    arguments = ["--routine", NAME, *CASE.split(), "--num_iters", "2", "--output_path", output]
    began = time.monotonic()
    status, text = mpirun(2, *arguments, "--backends", "gloo", how, path=broken_backends(tmp_path, "moe_comm", how))
    assert time.monotonic() - began < 30, text
    assert status != 0
    assert (said in text) or (how == "killed" and "KILLED" in text.upper()), text
    assert [(row["backend"], row["status"]) for row in rows_in(output)] == [("gloo", "ok")]


def test_ranks_that_were_started_with_different_flags_all_refuse(tmp_path):
    program = [sys.executable, LAUNCHER, "--routine", NAME, *CASE.split(), "--device", "cpu"]
    command = [MPIRUN, "-np", "1", *program, ":", "-np", "1", *program, "--quant_dtype", "fp8"]
    status, text = started(command)
    assert status != 0
    assert text.count("[ERROR] rank 1 has other flags than rank 0: --routine") == 1, text
    assert "start all ranks alike" in text


def test_torchrun_does_as_well(tmp_path):
    output = tmp_path / "out.csv"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", LAUNCHER]
    case = ["--routine", NAME, *CASE.split(), "--validate", "--num_iters", "2", "--device", "cpu"]
    status, text = started([*launcher, *case, "--output_path", output])
    (row,) = rows_in(output)
    assert (row["status"], row["check"], row["ranks"]) == ("ok", "passed", "2"), text
    assert text.count("[PERF]") == 1
    assert status == 0
