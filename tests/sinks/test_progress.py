from __future__ import annotations

import io
import re
import sys

import pytest

from flashinfer_perf.run.events import CaseStarted, Message, Severity
from flashinfer_perf.sinks.console import Console
from flashinfer_perf.sinks.progress import Progress, wanted
from tests.fakes import CPU, Fake, record

ERASE = "\x1b[2K"
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says that somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def watched(monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO | None = None) -> tuple[Terminal, io.StringIO]:
    """Standard error as a terminal, and standard output: the same terminal, or a file. Called by the tests
    themselves: pytest puts streams of its own in place between a fixture and its test.
    """
    terminal = Terminal()
    stdout = terminal if stdout is None else stdout
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    return terminal, stdout


def started(fake: Fake, number: int, total: int = 12) -> CaseStarted:
    return CaseStarted(fake.case(), CPU, ("torch",), number, total)


def test_the_bar_says_which_case_of_how_many(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    terminal, stdout = watched(monkeypatch, io.StringIO())
    progress = Progress(12)
    progress.take(started(fake, 4))
    progress.take(record())
    progress.close()
    shown = CONTROL.sub("", terminal.getvalue())
    assert "fake" in shown
    assert " 3/12" in shown
    assert "left" in shown
    assert stdout.getvalue() == ""


def test_the_bar_disappears_and_the_streams_are_given_back(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    terminal, stdout = watched(monkeypatch)
    progress = Progress(12)
    progress.take(started(fake, 1))
    progress.close()
    assert (sys.stderr, sys.stdout) == (terminal, stdout)
    assert terminal.getvalue().endswith(ERASE)


def test_lines_on_the_same_terminal_stand_above_the_bar_and_are_not_wrapped(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """A line that is longer than the terminal is wide is the terminal's to wrap: it may be copied from there."""
    terminal, _ = watched(monkeypatch)
    console, progress = Console(), Progress(12)
    line = "x = [bold]" + "word " * 60 + "end"
    for event in (started(fake, 1), Message(Severity.INFO, line)):
        console.take(event)
        progress.take(event)
    progress.close()
    assert f"{ERASE}[INFO] {line}\n" in terminal.getvalue()


def test_lines_to_a_file_are_written_there_plainly(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    terminal, stdout = watched(monkeypatch, io.StringIO())
    console, progress = Console(), Progress(12)
    console.take(Message(Severity.INFO, "x"))
    progress.close()
    assert stdout.getvalue() == "[INFO] x\n"
    assert "[INFO]" not in terminal.getvalue()


@pytest.mark.parametrize(("total", "is_wanted"), [(2, True), (1, False)])
def test_one_case_needs_no_bar(total: int, is_wanted: bool, monkeypatch: pytest.MonkeyPatch):
    watched(monkeypatch)
    assert wanted(total) is is_wanted


def test_nobody_watches_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not wanted(100)
