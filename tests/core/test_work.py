from __future__ import annotations

import math

import pytest

from flashinfer_perf.core.work import Work


def test_rates_follow_the_documented_formulas():
    work = Work(flops=4e12, bytes=3e9)
    assert work.tflops_per_s(median_ms=2.0) == pytest.approx(2000)
    assert work.tb_per_s(median_ms=2.0) == pytest.approx(1.5)


def test_a_routine_without_arithmetic_has_no_flops_rate():
    assert Work(flops=0, bytes=8).tflops_per_s(0.5) == 0


def test_a_time_too_short_for_the_clock_has_no_rate():
    work = Work(flops=1, bytes=1)
    assert math.isnan(work.tflops_per_s(0.0))
    assert math.isnan(work.tb_per_s(0.0))
