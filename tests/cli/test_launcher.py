"""The launcher ``benchmarks/flashinfer_benchmark.py``, started from several places and by Pythons that lack things."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.cli.conftest import LAUNCHER, ROOT, environment

PLAN = "--plan --routine mxfp4_quantize --m 16 --k 64"
NO_SITE = "-S"
"""Without the folder of installed packages: a Python that has no torch."""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project without an environment, and its launcher."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "benchmarks").mkdir()
    return tmp_path, shutil.copy(LAUNCHER, tmp_path / "benchmarks")


@pytest.mark.parametrize(
    ("cwd", "program"),
    [
        (ROOT / "benchmarks", "flashinfer_benchmark.py"),
        (ROOT, "benchmarks/flashinfer_benchmark.py"),
        ("/", LAUNCHER),
    ],
)
def test_it_runs_from_anywhere(launch, bench, cwd, program):
    outcome = launch(PLAN, program=program, cwd=cwd, env=environment(PYTHONPATH=""))
    assert outcome == bench(PLAN)
    assert outcome.code == 0


def test_it_takes_over_the_exit_status(launch):
    outcome = launch("--routine nothing")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "[ERROR] unknown routine 'nothing'. --list shows all with their backends\n"


def test_a_python_without_torch_and_no_environment(launch, checkout):
    root, program = checkout
    outcome = launch(PLAN, NO_SITE, program=program, cwd="/")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines() == [
        f"error: {sys.executable} lacks torch, numpy, scipy, rich, rich_argparse",
        f"Run `make benchmark` in {root} once: it sets up .venv, which this program then uses.",
        f"Or install into this Python: {sys.executable} -m pip install -e {root}",
    ]


def test_a_python_without_torch_goes_on_in_the_projects_environment(launch, bench, checkout):
    root, program = checkout
    write_program(root / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    assert launch(PLAN, program=program, cwd="/") == bench(PLAN), "this Python has all that is needed"
    write_program(root / ".venv" / "bin" / "python", 'echo "$0" "$@"')
    outcome = launch(PLAN, NO_SITE, "-u", program=program, cwd="/")
    assert outcome.code == 0
    assert outcome.out == f"{root}/.venv/bin/python -S -u {program} {PLAN}\n"


def test_an_environment_that_lacks_torch_too_does_not_start_itself_for_ever(launch, checkout):
    root, program = checkout
    write_program(root / ".venv" / "bin" / "python", f'exec {sys.executable} -S "$@"')
    outcome = launch(PLAN, NO_SITE, program=program, cwd="/")
    assert outcome.code == 2
    assert "lacks torch" in outcome.err


def test_it_needs_no_package_to_be_installed(launch, checkout):
    """The code beside it is what runs, even where another copy is installed."""
    root, program = checkout
    package = root / "src" / "flashinfer_perf" / "cli" / "bench.py"
    package.write_text("def main():\n    print('the copy')\n    return 3\n", encoding="utf-8")
    outcome = launch("", program=program, cwd="/")
    assert (outcome.code, outcome.out) == (3, "the copy\n")


def write_program(path, line):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    os.chmod(path, 0o755)
