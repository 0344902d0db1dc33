from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance import EXACT
from flashinfer_perf.core.record import CheckState, Finding, TensorStatistics, Verdict
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.judge import (
    agreement,
    conclusion,
    judge,
    mismatch_reason,
    probe,
    report,
    touched_inputs,
    verdict_of,
)
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import SingleRank
from tests.fakes import on_two_ranks

GOOD = Finding("out", True, "rtol 0.1", elements=8, max_abs=0.5, relative_l2=0.25, cosine=1.0)
BAD = dataclasses.replace(GOOD, passed=False, differing=2)


class Silent(Close):
    """Two right answers need not be equal, but draws can be judged."""

    def agree(self, name: str, actual: Any, other: Any) -> None:
        return None

    def probe(self, name: str, launch: Any, expected: Any) -> Finding:
        return Finding(name, False, "draws")


def problem(**checks: Any) -> Problem:
    return Problem({}, dict, Work(1, 1), checks, SingleRank())


def test_every_checked_output_gets_a_finding():
    one, two = torch.ones(2), torch.zeros(2)
    found = judge(problem(a=EXACT, b=EXACT), {"b": two, "a": one, "c": one}, {"a": one, "b": one})
    assert [(finding.output, finding.passed) for finding in found] == [("a", True), ("b", False)]


def test_an_output_that_is_not_there_is_an_error_that_names_both():
    with pytest.raises(TypeError, match="no output named lse; it gives out"):
        judge(problem(out=EXACT, lse=EXACT), {"out": torch.ones(1)}, {})


def test_probes_and_agreements_leave_out_what_has_none():
    one = torch.ones(1)
    checks = problem(a=EXACT, b=Silent(**dataclasses.asdict(EXACT)))
    assert [finding.output for finding in probe(checks, Launch(lambda: None), {})] == ["b"]
    assert [finding.output for finding in agreement(checks, {"a": one, "b": one}, {"a": one, "b": one})] == ["a"]


def test_a_changed_input_is_a_failed_finding():
    (finding,) = touched_inputs(["x"])
    assert (finding.output, finding.passed) == ("x", False)
    assert "declared" in finding.detail


@pytest.mark.parametrize(
    ("findings", "checked", "state"),
    [
        ([GOOD], True, CheckState.PASSED),
        ([], True, CheckState.PASSED),
        ([], False, CheckState.NOT_CHECKED),
        ([GOOD, BAD], True, CheckState.MISMATCH),
        (touched_inputs(["x"]), False, CheckState.MISMATCH),
    ],
)
def test_one_failed_finding_is_a_mismatch_and_no_check_is_no_verdict(findings, checked: bool, state: CheckState):
    assert verdict_of(findings, checked, SingleRank()).state is state


def test_a_mismatch_keeps_the_failed_findings_and_a_pass_all_of_them():
    assert verdict_of([GOOD, BAD], True, SingleRank()).findings == (BAD,)
    assert verdict_of([GOOD, GOOD], True, SingleRank()).findings == (GOOD, GOOD)


def test_one_ranks_mismatch_is_everybodys():
    verdicts = on_two_ranks(lambda ranks: verdict_of([BAD if ranks.rank == 1 else GOOD], True, ranks))
    found = (dataclasses.replace(BAD, rank=1),)
    assert [(verdict.state, verdict.findings) for verdict in verdicts] == [(CheckState.MISMATCH, found)] * 2


def test_findings_stand_in_the_ranks_order_and_a_pass_keeps_each_ranks_own():
    for one, kept in ((BAD, [[0, 1], [0, 1]]), (GOOD, [[0], [1]])):
        verdicts = on_two_ranks(lambda ranks, one=one: verdict_of([one], True, ranks))
        assert [[finding.rank for finding in verdict.findings] for verdict in verdicts] == kept


def test_the_reason_is_about_the_first_output_that_failed():
    verdict = Verdict(CheckState.MISMATCH, (GOOD, BAD))
    assert mismatch_reason(verdict) == "out: 2/8 elements differ; rtol 0.1"
    changed = Verdict(CheckState.MISMATCH, tuple(touched_inputs(["x"])))
    assert mismatch_reason(changed) == "x: an input changed that was not declared as mutated"


def lines(verdict: Verdict) -> list[tuple[str, str]]:
    return [(message.severity.value, message.text) for message in report("cudnn", verdict)]


MISMATCH = "Output tensor mismatch from backend cudnn: 2/8 (25.00%) elements differ"


def test_what_a_validation_found_is_said_of_each_rank():
    verdict = Verdict(CheckState.MISMATCH, tuple(dataclasses.replace(BAD, rank=rank) for rank in (0, 3)))
    numbers = "(out, max abs 0.5, relative L2 0.25; rtol 0.1)"
    assert [message.line for message in report("cudnn", verdict, validated=True)] == [
        f"[VALIDATE][Rank 0] ERROR: {MISMATCH} {numbers}",
        f"[VALIDATE][Rank 3] ERROR: {MISMATCH} {numbers}",
    ]
    assert [message.line for message in report("cudnn", verdict)] == [f"[ERROR] {MISMATCH} {numbers}"] * 2


def test_a_validation_is_concluded_in_the_documented_words():
    passed, failed = Verdict(CheckState.PASSED, (GOOD,)), Verdict(CheckState.MISMATCH, (BAD,))
    for goes_on in (False, True):
        assert [message.line for message in conclusion(passed, goes_on)] == [
            "[VALIDATE] PASSED: All ranks validated successfully"
        ]
    lines = ["[VALIDATE] FAILED: Validation errors detected", "[ERROR] Validation failed. Aborting benchmark."]
    assert [message.line for message in conclusion(failed, goes_on=False)] == lines
    assert [message.line for message in conclusion(failed, goes_on=True)] == lines[:1]


def test_a_pass_is_reported_with_its_numbers():
    assert lines(Verdict(CheckState.PASSED, (GOOD,))) == [
        (
            "REFCHECK",
            "Backend cudnn: 0/8 (0.00%) elements differ from the reference (out, max abs 0.5, relative L2 0.25)",
        )
    ]


def test_a_mismatch_is_reported_with_its_numbers_and_bounds():
    assert lines(Verdict(CheckState.MISMATCH, (BAD,))) == [
        (
            "ERROR",
            "Output tensor mismatch from backend cudnn: 2/8 (25.00%) elements differ "
            "(out, max abs 0.5, relative L2 0.25; rtol 0.1)",
        )
    ]


COVERED = "in 18 of 5242 rows, drawn with the seed"


def test_what_was_judged_is_said_where_it_was_not_all():
    numbers = f"(out, max abs 0.5, relative L2 0.25, {COVERED}"
    assert lines(Verdict(CheckState.PASSED, (dataclasses.replace(GOOD, coverage=COVERED),))) == [
        ("REFCHECK", f"Backend cudnn: 0/8 (0.00%) elements differ from the reference {numbers})")
    ]
    assert lines(Verdict(CheckState.MISMATCH, (dataclasses.replace(BAD, coverage=COVERED),))) == [
        ("ERROR", f"Output tensor mismatch from backend cudnn: 2/8 (25.00%) elements differ {numbers}; rtol 0.1)")
    ]


def test_a_finding_covers_everything_unless_it_says_otherwise():
    assert Finding("out", True, "bit for bit").coverage == ""


def test_both_tensors_and_their_worst_element_are_for_the_curious():
    actual = TensorStatistics(minimum=-1, maximum=2, mean=0.5, std=0.25, worst=2)
    expected = TensorStatistics(minimum=-1, maximum=1, mean=0.25, std=0.125, worst=1.5)
    finding = dataclasses.replace(BAD, worst_index=(3, 1), actual=actual, expected=expected)
    assert lines(Verdict(CheckState.MISMATCH, (finding,)))[1:] == [
        ("VVERBOSE", "out actual: min -1, max 2, mean 0.5, std 0.25, worst element [3, 1] = 2"),
        ("VVERBOSE", "out expected: min -1, max 1, mean 0.25, std 0.125, worst element [3, 1] = 1.5"),
    ]


def test_a_changed_input_is_reported_without_counting_elements():
    verdict = Verdict(CheckState.MISMATCH, tuple(touched_inputs(["x"])))
    assert lines(verdict) == [
        (
            "ERROR",
            "Output tensor mismatch from backend cudnn: x: an input changed that was not declared as mutated",
        )
    ]


def test_backends_are_compared_in_the_documented_words():
    verdict = Verdict(CheckState.PASSED, (), (GOOD, BAD), agreement_with="fa2")
    assert lines(verdict) == [
        (
            "REFCHECK",
            "Backend cudnn: 0/8 (0.00%) elements differ from backend fa2 (out, max abs 0.5, relative L2 0.25)",
        ),
        ("ERROR", "Output tensor mismatch between backends fa2 and cudnn: 2 / 8 (25.00%) elements are different"),
    ]
