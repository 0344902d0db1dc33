from __future__ import annotations

import pytest

from flashinfer_perf.run.events import CaseStarted, Message, Severity
from tests.fakes import CPU, Fake, record


def test_severities_are_spelled_as_they_are_printed():
    assert [severity.value for severity in Severity] == ["INFO", "WARNING", "ERROR", "REFCHECK", "VERBOSE", "VVERBOSE"]


def test_events_cannot_be_changed_by_a_sink(fake: Fake):
    fake.add("a")
    for event, field in (
        (Message(Severity.INFO, "x"), "text"),
        (CaseStarted(fake.case(), CPU, ("a",), 1, 1), "backends"),
        (record(), "status"),
    ):
        with pytest.raises(AttributeError):
            setattr(event, field, None)
