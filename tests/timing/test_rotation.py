"""How many sets of buffers a graph goes through."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.timing.rotation import MAX_MEMORY_SHARE, MAX_SETS, MIN_CALLS, buffer_bytes, plan_rotation

L2 = 60 << 20
FREE = 100 << 30


def test_a_warm_cache_needs_one_set_and_one_call():
    plan = plan_rotation(False, 1 << 20, 1 << 20, L2, FREE)
    assert (plan.sets, plan.calls, plan.description) == (1, 1, "warm")


def test_between_two_uses_of_a_set_more_than_the_cache_is_touched():
    plan = plan_rotation(True, 4 << 20, 4 << 20, L2, FREE)
    assert (plan.sets - 1) * (4 << 20) >= 2 * L2
    assert plan.calls >= MIN_CALLS
    assert plan.description == f"cold: {plan.sets} sets of 4 MiB rotated"


def test_an_operand_of_eight_bytes_does_not_make_millions_of_sets():
    plan = plan_rotation(True, 8, 8, L2, FREE)
    assert (plan.sets, plan.calls) == (1, 1)
    assert "L2 swept before each replay" in plan.description


def test_no_buffers_at_all_are_no_division_by_zero():
    assert plan_rotation(True, 0, 0, L2, FREE).sets == 1


def test_a_call_that_touches_half_of_the_cache_is_replayed_alone():
    assert plan_rotation(True, L2 // 2, L2, L2, FREE).sets == 1


def test_memory_caps_the_sets():
    plan = plan_rotation(True, 1 << 20, 1 << 30, L2, 10 << 30)
    assert plan.sets == 1
    assert "to rotate, 121 sets would be needed" in plan.description


@settings(derandomize=True, deadline=None)
@given(touched=st.integers(0, 1 << 36), extra=st.integers(0, 1 << 30), free=st.integers(0, 1 << 38))
def test_every_plan_is_cold_and_within_its_caps(touched: int, extra: int, free: int):
    plan = plan_rotation(True, touched, touched + extra, L2, free)
    assert plan.calls % plan.sets == 0
    assert plan.sets <= MAX_SETS
    assert plan.sets == 1 or (plan.sets - 1) * touched >= 2 * L2
    assert plan.sets == 1 or (plan.sets - 1) * (touched + extra) <= MAX_MEMORY_SHARE * free
    assert plan.description.startswith("cold")


def test_views_of_one_storage_count_once():
    pool = torch.zeros(100, dtype=torch.int32)
    assert buffer_bytes([pool, pool[10:], pool.view(10, 10), torch.zeros(3, dtype=torch.int8)]) == 403
