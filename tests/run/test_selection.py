from __future__ import annotations

import pytest

from flashinfer_perf.core.requirement import capability, case_rule
from flashinfer_perf.run.selection import one_that_works, select
from tests.fakes import CPU, HOPPER, Fake

FEW_ROWS = case_rule("at most 8 rows", lambda flags: flags.rows <= 8)


@pytest.fixture
def routine(fake: Fake) -> Fake:
    fake.add("gpu", requires=(capability(minimum="9.0"),))
    fake.add("small", requires=(FEW_ROWS,))
    fake.add("any")
    return fake


def names(backends) -> list[str]:
    return [backend.name for backend in backends]


def test_by_default_every_backend_is_an_alternative_in_order_of_preference(routine: Fake):
    selection = select(routine.case(), CPU)
    assert selection.by_default
    assert names(selection.runnable) == ["small", "any"]
    assert [refused.backend.name for refused in selection.refused] == ["gpu"]
    assert selection.names == ("small",)


def test_the_default_runs_where_it_can(routine: Fake):
    selection = select(routine.case(), HOPPER)
    assert selection.names == ("gpu",)
    assert selection.refused == ()


def test_typed_backends_run_in_the_order_typed(routine: Fake):
    selection = select(routine.case("--backends any gpu small"), HOPPER)
    assert not selection.by_default
    assert selection.names == ("any", "gpu", "small")


def test_a_refusal_has_the_requirement_and_the_reason(routine: Fake):
    selection = select(routine.case("--rows 9 --backends any small gpu"), CPU)
    assert names(selection.runnable) == ["any"]
    small, gpu = selection.refused
    assert (small.requirement, small.reason) == (FEW_ROWS, "it needs at most 8 rows")
    assert gpu.requirement.on_capability
    assert "CUDA GPU" in gpu.reason


def test_nothing_can_run(routine: Fake):
    assert select(routine.case("--rows 9 --backends small"), CPU).names == ()


def test_one_that_works_is_one_that_was_not_tried(routine: Fake):
    assert one_that_works(routine.case("--rows 9 --backends gpu small"), CPU) == "any"
    assert one_that_works(routine.case("--backends gpu any"), CPU) == "small"
    assert one_that_works(routine.case("--backends gpu small any"), CPU) == ""
    assert one_that_works(routine.case(), CPU) == ""
