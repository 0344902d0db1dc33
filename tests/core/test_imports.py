"""Parsing, ``--help`` and ``--plan`` cost milliseconds because nothing heavy is imported for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "numpy", "scipy", "flashinfer", "rich", "triton", "cupti", "mpi4py", "pynvml", "ray")


def modules(folder: str, pattern: str) -> list[str]:
    files = sorted((SOURCE / "flashinfer_perf" / folder).glob(pattern))
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for path in files]


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has after this code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & set(HEAVY)


@pytest.mark.parametrize(
    ("folder", "pattern", "least"), [("core", "*.py", 18), ("cli", "*.py", 6), ("routines", "*/flags.py", 5)]
)
def test_nothing_heavy_is_imported_by(folder, pattern, least):
    names = modules(folder, pattern)
    assert len(names) >= least
    assert loaded_by("import " + ", ".join(names)) == set()


def test_nothing_heavy_is_imported_by_declaring_every_routine():
    code = "from flashinfer_perf.routines import all_routines\nassert len(all_routines()) >= 5"
    assert loaded_by(code) == set()


def test_nothing_heavy_is_imported_by_a_plan():
    code = (
        "from flashinfer_perf.cli.bench import main\n"
        "assert main('--routine mxfp4_quantize --m 128 --k 64 --plan'.split()) == 0"
    )
    assert loaded_by(code) == set()


def test_this_would_find_a_heavy_import():
    assert loaded_by("import rich, numpy") == {"rich", "numpy"}
