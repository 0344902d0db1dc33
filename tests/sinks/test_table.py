from __future__ import annotations

import io

import pytest

from flashinfer_perf.core.record import CheckState, Status, Verdict
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.events import CaseStarted, Message, Severity
from flashinfer_perf.sinks.table import Table, table_row
from tests.fakes import CPU, Fake, measurement, record


def printed(*events: object) -> str:
    stream = io.StringIO()
    table = Table(stream)
    for event in events:
        table.take(event)  # type: ignore[arg-type]
    table.close()
    return stream.getvalue()


def test_the_documented_lines_come_first_and_the_table_at_the_end(fake: Fake):
    start = CaseStarted(fake.case("-v"), CPU, ("torch",), 1, 1)
    lines = printed(start, Message(Severity.WARNING, "x"), record()).splitlines()
    assert lines[0].startswith("[INFO] args = Namespace(")
    assert "[WARNING] x" in lines
    perf = next(number for number, line in enumerate(lines) if line.startswith("[PERF] torch"))
    header = "routine case backend status check median ms ± 95 % TFLOP/s TB/s reason"
    assert " ".join(lines[perf + 1].split()) == header
    assert lines[perf + 2].split()[:4] == ["fake", "torch", "ok", "not_checked"]


def test_a_row_has_time_spread_and_rates():
    measured = record(
        options={"case_tag": "x"},
        summary="rows=4",
        measurement=measurement(*[0.002] * 5, 0.0022, 0.0018),
        work=Work(flops=4e6, bytes=2e6),
        verdict=Verdict(CheckState.PASSED),
    )
    assert table_row(measured) == (
        *("fake", "rows=4  # x", "torch", "ok", "passed"),
        *("0.00200", "10.0 %", "2.000", "1.000", ""),
    )


def test_a_row_of_something_that_was_not_measured_has_its_reason():
    row = table_row(record(status=Status.UNSUPPORTED, reason="it needs a GPU", measurement=None, work=None))
    assert row == ("fake", "", "torch", "unsupported", "not_checked", "", "", "", "", "it needs a GPU")


def test_a_row_without_work_or_with_a_time_too_short_for_the_clock():
    assert table_row(record(work=None))[7:9] == ("", "")
    assert table_row(record(measurement=measurement(0.0)))[5:9] == ("0.000", "", "nan", "nan")


def test_the_longest_reasons_are_folded_not_cut():
    reason = "x" * 300
    output = printed(record(status=Status.FAILED, reason=reason, measurement=None))
    assert output.count("x") == 300
    assert max(map(len, output.splitlines())) <= 160


@pytest.mark.parametrize("text", ["[bold]tag[/bold]", "[/]", "list[int] of [red]", ":smile:"])
def test_texts_are_shown_as_they_are(text: str):
    """They are the user's, or a library's, and no markup."""
    output = printed(record(options={"case_tag": text}, status=Status.FAILED, reason=text, measurement=None))
    assert output.count(text) == 2


def test_without_records_there_is_just_a_header():
    assert len(printed().splitlines()) == 1
