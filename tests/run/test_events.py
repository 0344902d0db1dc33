from __future__ import annotations

import pytest

from flashinfer_perf.run.events import CaseStarted, Message, Severity
from tests.fakes import CPU, Fake, record


def test_severities_are_spelled_as_they_are_printed():
    spelled = "INFO WARNING ERROR REFCHECK VALIDATE VERBOSE VVERBOSE"
    assert [severity.value for severity in Severity] == spelled.split()


def test_a_line_names_the_rank_that_it_is_about():
    assert Message(Severity.VALIDATE, "x").line == "[VALIDATE] x"
    assert Message(Severity.VALIDATE, "ERROR: x", rank=0).line == "[VALIDATE][Rank 0] ERROR: x"


def test_events_cannot_be_changed_by_a_sink(fake: Fake):
    fake.add("a")
    for event, field in (
        (Message(Severity.INFO, "x"), "text"),
        (CaseStarted(fake.case(), CPU, ("a",), 1, 1), "backends"),
        (record(), "status"),
    ):
        with pytest.raises(AttributeError):
            setattr(event, field, None)
