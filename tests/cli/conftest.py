"""Runs the program as a user does: inside this process, which is fast, or through the launcher."""

from __future__ import annotations

import csv
import gc
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flashinfer_perf.cli.bench import main
from flashinfer_perf.core.machine import Machine

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "benchmarks" / "flashinfer_benchmark.py"
HOPPER = Machine("cuda:0", "NVIDIA H200", (9, 0), 50 << 20)


@pytest.fixture(autouse=True)
def _quick_collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine collects garbage after every backend. What torch holds is exempt from it, as in a long session."""
    unfreeze = gc.unfreeze
    monkeypatch.setattr(gc, "unfreeze", lambda: None)
    gc.freeze()
    yield
    unfreeze()


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``out`` and ``err`` are what it wrote, never a traceback."""

    code: int
    out: str
    err: str

    def __post_init__(self) -> None:
        assert "Traceback" not in self.out + self.err, self.out + self.err

    def lines(self, tag: str) -> list[str]:
        """The lines of standard output with this tag, without it."""
        start = f"[{tag}] "
        return [line.removeprefix(start) for line in self.out.splitlines() if line.startswith(start)]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line, quoted as for a shell, in this process."""

    def run(line: str) -> Outcome:
        capsys.readouterr()
        return Outcome(main(shlex.split(line)), *capsys.readouterr())

    return run


@pytest.fixture
def launch() -> Callable[..., Outcome]:
    """Runs the launcher in a process of its own."""

    def run(line: str, *options: str, program: Path | str = LAUNCHER, **process: Any) -> Outcome:
        command = [sys.executable, *options, str(program), *shlex.split(line)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **{"env": environment(), **process})
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def testlist(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a testlist; its path is short, so that messages are legible."""

    def write(text: str, name: str = "list.txt") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as the requirements of backends can see."""
    for module in ("run.placement", "cli.list"):
        monkeypatch.setattr(f"flashinfer_perf.{module}.find_machine", lambda device: HOPPER)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)


@pytest.fixture
def without_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashinfer_perf.core.requirement.is_installed", lambda module: module != "flashinfer")


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would make a program wait for the other processes of an MPI run."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PMI_")}, **variables}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
