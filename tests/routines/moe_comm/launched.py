"""Starts the real program on several ranks."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.routines.plugin import make_plugin

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "benchmarks" / "flashinfer_benchmark.py"
MPIRUN = Path(sys.executable).with_name("mpirun")
LONGEST_SECONDS = 120

needs_mpi = pytest.mark.skipif(
    not MPIRUN.exists() or find_spec("mpi4py") is None, reason="needs mpi4py and MPICH's mpirun beside Python"
)


def mpirun(ranks: int, *arguments: object, path: tuple[Path, ...] = ()) -> tuple[int, str]:
    """Exit status, and all that was printed."""
    return started([MPIRUN, "-np", str(ranks), sys.executable, LAUNCHER, *arguments, "--device", "cpu"], path)


def started(command: list[object], path: tuple[Path, ...] = ()) -> tuple[int, str]:
    search = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LONGEST_SECONDS)
    return done.returncode, done.stdout + done.stderr


def rows_in(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def broken_backends(folder: Path, family: str, *names: str) -> tuple[Path, ...]:
    """Makes backends of a family's ``broken.py`` a plug-in in a folder; what the path needs to find it."""
    source = f"from tests.routines.{family}.broken import declare\ndeclare({names!r})\n"
    make_plugin(folder, f"broken_{family}", source)
    return folder, ROOT
