from __future__ import annotations

import io
import json
import sys

import pytest

from flashinfer_perf.run.events import CaseStarted, Message, Severity
from flashinfer_perf.sinks.json_console import JsonConsole
from tests.fakes import CPU, Fake, record


def take_all(fake: Fake, console: JsonConsole) -> None:
    console.take(CaseStarted(fake.case("-vv"), CPU, ("torch",), 1, 1))
    console.take(Message(Severity.VVERBOSE, "x"))
    console.take(record())
    console.take(record(backend="cudnn"))
    console.close()


def test_programs_get_records_and_people_the_lines_beside_them(fake: Fake):
    programs, people = io.StringIO(), io.StringIO()
    take_all(fake, JsonConsole(programs, people))
    assert [json.loads(line)["backend"] for line in programs.getvalue().splitlines()] == ["torch", "cudnn"]
    assert "[VVERBOSE] x" in people.getvalue()
    assert people.getvalue().count("[PERF]") == 2


def test_by_default_on_standard_output_and_error_as_they_are_now(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    console = JsonConsole()
    programs, people = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", programs)
    monkeypatch.setattr(sys, "stderr", people)
    take_all(fake, console)
    assert len(programs.getvalue().splitlines()) == 2
    assert "[PERF]" in people.getvalue()
