"""What the table of rates makes of records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def rate_table(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import rate_table

    yield rate_table
    for name in ("rate_table", "gpu_needed"):
        sys.modules.pop(name, None)


def record(**facts):
    return {
        "measurement": {"summary": {"median_ms": 1.0}},
        "work": {"flops": 4e12, "bytes": 2e9},
        "facts": facts,
        "backend": "auto",
        "resolved_backend": "cublas",
        "verdict": {"findings": [{"relative_l2": 0.25}, {"relative_l2": None}]},
        "options": {"case_tag": "of {m} rows"},
        "case": {"m": 8},
    }


def test_a_row_has_rates_and_their_shares(rate_table):
    limits = rate_table.Limits(4.0, 8000.0, float("nan"))
    found = rate_table.row(record(), limits)
    assert found[:6] == ("of 8 rows", "auto (cublas)", "1000.0", "4000.0", "2.000", "50 %")
    assert found[6:] == ("50 %", "nan %", "0.2500")


def test_of_mixtures_the_experts_that_are_here_count(rate_table):
    limits = rate_table.Limits(4.0, 8000.0, 16000.0)
    found = rate_table.row(record(local_flops=1e12, local_bytes=1e9), limits)
    assert found[3:8] == ("1000.0", "1.000", "25 %", "12 %", "6 %")


def test_a_column_of_zeros_is_left_out(rate_table):
    limits = rate_table.Limits(4.0, 8000.0, 16000.0)
    head, *_ = rate_table.table([record(local_flops=0)], limits).splitlines()
    assert "TB/s" in head
    assert "TFLOP/s" not in head
