from __future__ import annotations

import itertools

import pytest

from flashinfer_perf.core.exit_status import FAILURE, INTERRUPTED, NOTHING_PARSED, SUCCESS, Tally
from flashinfer_perf.core.record import Record, Status

ALLOWED = "an allowed mismatch"


def status_of(*outcomes: Status | str) -> int:
    tally = Tally()
    for outcome in outcomes:
        allowed = outcome == ALLOWED
        status = Status.MISMATCH if allowed else Status(outcome)
        tally.add(Record(status, "", "rmsnorm", "cuda", options={"allow_output_mismatch": allowed}))
    return tally.exit_status


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["ok"], SUCCESS),
        (["ok", "ok", "unsupported"], SUCCESS),
        (["unsupported"], FAILURE),
        (["mismatch"], FAILURE),
        (["ok", "mismatch"], FAILURE),
        (["ok", "invalid"], FAILURE),
        (["unsupported", "invalid"], FAILURE),
        (["ok", "failed"], FAILURE),
        (["ok", "out_of_memory"], FAILURE),
        (["ok", "timeout"], FAILURE),
        (["ok", "crashed"], FAILURE),
        ([ALLOWED], SUCCESS),
        (["ok", ALLOWED, "unsupported"], SUCCESS),
        ([ALLOWED, "mismatch"], FAILURE),
        ([ALLOWED, "failed"], FAILURE),
        ([], NOTHING_PARSED),
        (["invalid"], NOTHING_PARSED),
        (["invalid", "invalid"], NOTHING_PARSED),
        (["interrupted"], INTERRUPTED),
        (["ok", "interrupted"], INTERRUPTED),
        (["invalid", "interrupted"], INTERRUPTED),
        (["failed", "interrupted"], INTERRUPTED),
    ],
)
def test_exit_status_of(outcomes, expected):
    assert status_of(*outcomes) == expected


def test_the_values_are_the_documented_ones():
    assert (SUCCESS, FAILURE, NOTHING_PARSED, INTERRUPTED) == (0, 1, 2, 130)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_zero_needs_an_ok_and_nothing_but_ok_and_unsupported(number):
    for outcomes in itertools.product([*Status, ALLOWED], repeat=number):
        fine = {Status.OK, ALLOWED} & set(outcomes) and set(outcomes) <= {Status.OK, ALLOWED, Status.UNSUPPORTED}
        assert (status_of(*outcomes) == SUCCESS) == bool(fine), outcomes


def test_the_order_of_records_does_not_matter():
    outcomes = ["ok", "unsupported", "mismatch", ALLOWED]
    assert {status_of(*order) for order in itertools.permutations(outcomes)} == {FAILURE}


def test_counts_are_kept_by_status():
    tally = Tally()
    for status in ("ok", "ok", "failed"):
        tally.add(Record(Status(status), "", "rmsnorm", "cuda"))
    assert tally.counts == {Status.OK: 2, Status.FAILED: 1}
