"""A package of somebody else's adds a routine, and a backend to a routine of ours, with no change here."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashinfer_perf.routines import all_routines
from flashinfer_perf.sinks.columns import columns_of
from tests.routines.plugin import make_plugin

LAUNCHER = Path(__file__).parents[2] / "benchmarks" / "flashinfer_benchmark.py"

ACME = '''
"""A family of one routine, and a quantiser of Acme's own."""

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import backends_flag, flag
from flashinfer_perf.core.routine import Fact, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.quantization.mxfp4_quantize import encoding_of, mxfp4_quantize, quantise
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@dataclass(frozen=True)
class AcmeFlags:
    family: ClassVar[str] = "acme"

    rows: int = flag(minimum=1, help="Rows of the Acme matrix.")
    gain: float = flag(2.0, help="What everything is multiplied by.")
    backends: tuple[str, ...] = backends_flag()


def exactly(x, gain):
    return {"out": x.double() * gain}


@routine("acme_amplify", flags=AcmeFlags, uses=("rows", "gain"), facts=(Fact("acme_grade", "how good it was"),))
def acme_amplify(case, make):
    """Multiplies by a number, as only Acme can."""
    x = make.normal("x", (case.rows, 8), DType.FLOAT32)
    return Problem(
        tensors={"x": x},
        reference=lambda x: exactly(x, case.gain),
        work=Work(flops=x.numel(), bytes=8 * x.numel()),
        checks={"out": tolerance.for_rounding(DType.FLOAT32)},
        ranks=make.ranks,
    )


@acme_amplify.backend("anvil")
def anvil(case, problem):
    """With an anvil."""
    return Launch(
        torch.mul,
        kwargs={"input": problem["x"], "other": case.gain},
        returns=("out",),
        facts={"acme_grade": "superb"},
    )


@mxfp4_quantize.backend("rocket")
def rocket(case, problem):
    """With a rocket."""
    return Launch(quantise, kwargs={"x": problem["x"], "encoding": encoding_of(case)}, returns=("x_q", "sf"))
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with Acme's package in it."""
    folder = tmp_path_factory.mktemp("site")
    make_plugin(folder, "acme_kernels", ACME)
    return folder


def program(folder, *arguments):
    """The real program with a folder of plug-ins."""
    search = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, LAUNCHER, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_listed(installed):
    lines = program(installed, "--list", "--device", "cpu").stdout.splitlines()
    assert "acme" in lines
    assert "  acme_amplify: Multiplies by a number, as only Acme can." in lines
    assert "    + anvil" in lines
    ours = lines.index(next(line for line in lines if line.startswith("  mxfp4_quantize:")))
    assert "    + rocket" in lines[ours : ours + 6]


def test_it_is_in_the_help(installed):
    everything = program(installed, "--help").stdout
    assert "acme flags" in everything
    assert "--gain" in everything
    one = program(installed, "--routine", "acme_amplify", "--help").stdout
    assert "What everything is multiplied by. Default: 2.0." in one
    assert "anvil: With an anvil. (runs anywhere)" in one


def test_it_is_measured_checked_and_written_down(installed, tmp_path):
    testlist, output = tmp_path / "cases.txt", tmp_path / "out.csv"
    testlist.write_text(
        "--routine acme_amplify --rows 3 --gain 1.5 --refcheck\n"
        "--routine mxfp4_quantize --m 2 --k 32 --backends rocket torch --refcheck\n"
    )
    done = program(installed, "--testlist", testlist, "--output_path", output, "--device", "cpu", "--num_iters", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    labels = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("[PERF]")]
    assert labels == ["anvil", "rocket", "torch"]
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["backend"], row["status"], row["check"]) for row in rows] == [
        (label, "ok", "passed") for label in labels
    ]
    assert (rows[0]["rows"], rows[0]["gain"], rows[0]["acme_grade"]) == ("3", "1.5", "superb")
    assert set(rows[0]) - set(columns_of(all_routines())) == {"rows", "gain", "acme_grade"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_of_acmes", "No module named 'no_such_module_of_acmes'"),
        (
            "from flashinfer_perf.core.routine import routine\n"
            "from flashinfer_perf.routines.norm.flags import NormFlags\n"
            "routine('mxfp4_quantize', flags=NormFlags, uses=())(print)",
            "there is a routine 'mxfp4_quantize' already",
        ),
        (
            "from flashinfer_perf.routines.quantization.mxfp4_quantize import mxfp4_quantize\n"
            "mxfp4_quantize.backend('torch')(print)",
            "routine 'mxfp4_quantize' has a backend 'torch' already",
        ),
        ("raise SystemExit('Acme is out of business')", "Acme is out of business"),
    ],
)
def test_one_that_does_not_work_costs_a_warning(tmp_path, source, reason):
    make_plugin(tmp_path, "acme_defunct", source)
    done = program(tmp_path, "--routine", "mxfp4_quantize", "--m", "1", "--k", "32", "--plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING] plug-in acme_defunct (acme_defunct) is left out" in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
