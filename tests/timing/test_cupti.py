"""What is read from CUPTI's activities; recording them needs a GPU (tests/gpu/test_clocks.py)."""

from __future__ import annotations

import pytest

from flashinfer_perf.timing.activity import Activity
from flashinfer_perf.timing.cupti import MARK, Call, LostActivities, split_calls


def mark(start: int) -> Activity:
    return Activity(start, start + 5, f"at::cuda::{MARK}(long)")


def kernel(start: int, end: int, name: str = "kernel") -> Activity:
    return Activity(start, end, name)


def test_activities_between_two_marks_are_a_call():
    sweep = kernel(0, 9, "sweep")
    first, second = kernel(30, 40), kernel(42, 50)
    calls = split_calls([sweep, mark(10), first, second, mark(60), sweep, mark(80), first, mark(95)], 2)
    assert [call.activities for call in calls] == [(first, second), (first,)]


def test_the_span_runs_from_the_first_start_to_the_last_end():
    call = Call((kernel(1000, 2000), kernel(1500, 1700), kernel(3000, 3500)))
    assert call.span_ms == pytest.approx(2500e-6)


def test_busy_is_the_union_of_the_intervals():
    call = Call((kernel(1000, 2000), kernel(1500, 1700), kernel(1900, 2200), kernel(3000, 3500)))
    assert call.busy_ms == pytest.approx((1200 + 500) * 1e-6)


def test_a_lost_mark_is_an_error_and_not_another_call():
    with pytest.raises(LostActivities, match="1 marks for 1 calls"):
        split_calls([mark(0), kernel(10, 20)], 1)


def test_a_call_without_activities_is_an_error():
    with pytest.raises(LostActivities, match="no kernel"):
        split_calls([mark(0), mark(20)], 1)
