from __future__ import annotations

import math

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.record import CheckState, Finding, Status, Verdict
from flashinfer_perf.core.work import UNCOUNTED, Work
from flashinfer_perf.sinks.row import row_of, rows_of, text_of
from tests.fakes import Fake, measurement, record


def test_times_are_in_milliseconds_and_rates_by_the_documented_formulas():
    row = row_of(record(measurement=measurement(1.0, 2.0, 4.0), work=Work(flops=3e12, bytes=4e9)))
    assert (row["median_time"], row["min"], row["mean"]) == (2.0, 1.0, pytest.approx(7 / 3))
    assert row["std_time"] == pytest.approx(1.247219, rel=1e-6)
    assert (row["tflops"], row["tb_per_sec"]) == (1500.0, 2.0)
    assert (row["ci_low"], row["ci_high"], row["samples"], row["outliers"]) == (1.0, 4.0, 3, 0)
    assert (row["flops"], row["bytes"]) == (3e12, 4e9)


def test_a_time_too_short_for_the_clock_has_no_rate():
    row = row_of(record(measurement=measurement(0.0, 0.0)))
    assert math.isnan(row["tflops"])
    assert math.isnan(row["tb_per_sec"])


def test_what_was_not_measured_has_no_numbers():
    row = row_of(record(status=Status.UNSUPPORTED, reason="no", measurement=None, work=None))
    assert not {"median_time", "tflops", "timer", "samples"} & set(row)
    assert (row["status"], row["reason"], row["use_cupti"], row["flops"]) == (Status.UNSUPPORTED, "no", None, None)


@pytest.mark.parametrize(("timer", "used"), [("cupti", True), ("cuda_graph", False), ("cpu", False)])
def test_use_cupti_says_which_clock_was_used_not_which_was_asked_for(timer: str, used: bool):
    row = row_of(record(options={"use_cupti": not used}, measurement=measurement(1.0, timer=timer)))
    assert (row["use_cupti"], row["timer"]) == (used, timer)


def test_phases_have_their_medians_with_all_digits():
    phases = {"dispatch": (0.3, 0.1, 0.2), "combine": (1.0, 1.0, 4.0)}
    row = row_of(record(measurement=measurement(1.3, 1.1, 4.2, phases_ms=phases)))
    assert row["phases"] == "dispatch=0.2 combine=1.0"


def test_each_phase_has_a_row_of_its_own_before_that_of_the_whole():
    phases = {"a2a_dispatch": (2.0, 2.0), "moe_kernel": (1.0, 1.0)}
    measured = measurement(3.0, 3.0, phases_ms=phases, total_name="a2a_total", timer_facts={"rank_skew": 0.5})
    dispatch, kernel, whole = rows_of(record(measurement=measured, phase_work={"a2a_dispatch": Work(0, 4e9)}))
    assert [row["phase"] for row in (dispatch, kernel, whole)] == ["a2a_dispatch", "moe_kernel", "a2a_total"]
    assert [row["median_time"] for row in (dispatch, kernel, whole)] == [2.0, 1.0, 3.0]
    assert (dispatch["tb_per_sec"], dispatch["bytes"]) == (2.0, 4e9)
    assert "tb_per_sec" not in kernel
    assert kernel["bytes"] is None
    assert whole["rank_skew"] == 0.5
    assert "rank_skew" not in dispatch


def test_what_was_timed_as_a_whole_or_not_at_all_has_one_row():
    assert len(rows_of(record())) == 1
    assert len(rows_of(record(status=Status.UNSUPPORTED, measurement=None, work=None))) == 1


def test_what_else_a_clock_knows_has_columns_of_its_own():
    row = row_of(record(measurement=measurement(1.0, timer_facts={"in_graph": True, "kernels": 2})))
    assert (row["in_graph"], row["kernels"]) == (True, 2)


def test_the_worst_numbers_over_the_outputs():
    findings = (
        Finding("out", True, "", 10, 1, max_abs=0.5, relative_l2=0.1, cosine=0.99),
        Finding("lse", True, "", 10, 2, max_abs=0.25, relative_l2=0.2, cosine=0.98),
        Finding("ids", True, "", 10, 0),
    )
    row = row_of(record(verdict=Verdict(CheckState.PASSED, findings)))
    assert (row["max_abs_error"], row["relative_l2_error"], row["cosine"]) == (0.5, 0.2, 0.98)
    assert (row["differing_elements"], row["check"]) == (3, CheckState.PASSED)
    without = row_of(record(verdict=Verdict(CheckState.PASSED, findings[2:])))
    assert (without["max_abs_error"], without["cosine"]) == (None, None)


def test_flags_that_took_effect_stand_over_general_ones_and_results_over_all():
    row = row_of(
        record(
            options={"cache": None, "device": "auto", "random_seed": 1},
            environment={"device": "cpu"},
            case={"rows": 4},
            facts={"plan_ms": 2.5},
        )
    )
    assert (row["device"], row["rows"], row["plan_ms"], row["random_seed"]) == ("cpu", 4, 2.5, 1)
    assert row["routine"] == "fake"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "True"),
        (42, "42"),
        (0.1 + 0.2, "0.30000000000000004"),
        (math.nan, "nan"),
        ("a b", "a b"),
        (("x", "y"), "x y"),
        (["x"], "x"),
        ((), ""),
        (Status.OUT_OF_MEMORY, "out_of_memory"),
        (CheckState.NOT_CHECKED, "not_checked"),
        (DType.FP8_E4M3, "fp8_e4m3"),
    ],
)
def test_cells(value: object, text: str):
    assert text_of(value) == text


def test_formats_are_spelled_as_on_the_command_line(fake: Fake):
    """Upstream mixes torch.bfloat16 and bfloat16 in one column."""
    row = row_of(fake.record("--refcheck"))
    assert not [key for key, value in row.items() if "torch." in text_of(value) and key != "reason"]


def test_flops_that_are_not_counted_are_not_available():
    row = row_of(record(measurement=measurement(2.0), work=Work(UNCOUNTED, bytes=4e9)))
    assert (row["flops"], row["tflops"], row["tb_per_sec"]) == ("N/A", "N/A", 2.0)
