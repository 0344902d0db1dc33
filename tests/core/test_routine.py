from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import REQUIRED, backends_flag, flag
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, capability, case_rule
from flashinfer_perf.core.routine import (
    Fact,
    Rule,
    declared_routines,
    declared_temporarily,
    declared_whole,
    narrowed,
    routine,
)

CPU = Machine("cpu", "cpu")


@dataclass(frozen=True)
class ToyFlags:
    family: ClassVar[str] = "toys"

    rows: int = flag(minimum=1, help="Rows.")
    top_k: int = flag(5, minimum=1, help="How many.")
    layout: str | None = flag(None, choices=("flat", "tiled"), help="Layout.")
    unread: float = flag(1.0, help="Of other routines.")
    backends: tuple[str, ...] = backends_flag()


@pytest.fixture(autouse=True)
def _no_trace():
    with declared_temporarily():
        yield


def declare(name: str = "toy", **details):
    details = {"flags": ToyFlags, "uses": ("rows", "top_k"), **details}

    @routine(name, **details)
    def make(case, make):
        """Plays.

        At length.
        """

    return make


def test_a_declaration_knows_the_flags_it_reads_and_backends_always():
    toy = declare()
    assert list(toy.specs) == ["rows", "top_k", "backends"]
    assert toy.family == "toys"
    assert toy.summary == "Plays."
    assert declared_routines()["toy"] is toy


def test_facts_and_rules_are_kept():
    fact, rule = Fact("plan_ms", "time to plan"), Rule(lambda case: True, "always")
    toy = declare(facts=[fact], rules=[rule])
    assert toy.facts == (fact,)
    assert toy.rules == (rule,)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("bmm_fp8", "testBmmFp8"),
        ("rmsnorm", "testRmsnorm"),
        ("top_k_top_p_sampling_from_probs", "testTopKTopPSamplingFromProbs"),
        ("BatchMLAPagedAttentionWrapper", "testBatchMLAPagedAttentionWrapper"),
    ],
)
def test_the_label_is_upstreams_function_name(name, label):
    assert declare(f"{name}_toy").label == f"{label}Toy"


def test_a_label_may_be_given():
    assert declare(label="test_toy").label == "test_toy"


def test_a_second_routine_of_the_same_name_is_refused_and_the_first_located():
    declare()
    with pytest.raises(ValueError, match=r"a routine 'toy' already, in .*test_routine"):
        declare()


def test_an_undeclared_flag_is_refused_at_declaration():
    with pytest.raises(KeyError, match="no_such_flag"):
        declare(uses=("no_such_flag",))


def test_a_narrowed_flag_has_defaults_and_limits_of_the_routine_alone():
    narrow = declare(uses=(narrowed("rows", minimum=8), narrowed("layout", default=REQUIRED, choices=("flat",))))
    wide = declare("wide", uses=("rows", "layout"))
    assert narrow.specs["rows"].minimum == 8
    assert narrow.specs["layout"].required
    assert narrow.specs["layout"].choices == ("flat",)
    assert narrow.specs["layout"].help == wide.specs["layout"].help
    assert wide.specs["rows"].minimum == 1
    assert not wide.specs["layout"].required


def test_a_limit_that_does_not_exist_cannot_be_narrowed():
    with pytest.raises(TypeError, match="maximum"):
        declare(uses=(narrowed("rows", maximum=8),))


def test_a_broken_rule_is_told_with_the_routine_and_the_values():
    toy = declare(
        rules=(
            Rule(lambda case: case.top_k <= case.rows, "top_k ({top_k}) must not exceed rows ({rows})"),
            Rule(lambda case: case.rows % 2 == 0, "rows ({rows}) must be even"),
            Rule(lambda case: case.rows < 100 or case.layout, "100 rows need a layout; it is {layout}"),
        )
    )
    toy.check_rules(ToyFlags(rows=6))
    with pytest.raises(InvalidInput, match=r"^toy: top_k \(5\) must not exceed rows \(3\)$"):
        toy.check_rules(ToyFlags(rows=3))
    with pytest.raises(InvalidInput, match=r"^toy: rows \(7\) must be even$"):
        toy.check_rules(ToyFlags(rows=7))
    with pytest.raises(InvalidInput, match=r"^toy: 100 rows need a layout; it is not given$"):
        toy.check_rules(ToyFlags(rows=100))


def test_backends_keep_the_order_of_their_declaration():
    toy = declare()

    @toy.backend("fast", requires=[capability(9)], documented="9.0 10.0", ignores=["top_k"])
    def fast(case, problem):
        """Fast.

        Very.
        """

    @toy.backend("any")
    def anywhere(case, problem): ...

    assert list(toy.backends) == ["fast", "any"]
    backend = toy.find_backend("fast")
    assert backend.summary == "Fast."
    assert backend.prepare is fast
    assert backend.documented == ("9.0", "10.0")
    assert backend.ignores == ("top_k",)
    assert toy.find_backend("any").summary == ""


def test_a_backend_may_hold_state_of_the_process_and_by_default_holds_none():
    toy, held = declare(), []

    @contextlib.contextmanager
    def state():
        held.append("held")
        yield

    toy.backend("global", state=state)(print)
    toy.backend("plain")(print)
    for backend in toy.backends.values():
        with backend.state():
            pass
    assert held == ["held"]


def test_a_second_backend_of_the_same_name_is_refused():
    toy = declare()
    toy.backend("fast")(print)
    with pytest.raises(ValueError, match=r"routine 'toy' has a backend 'fast' already"):
        toy.backend("fast")(print)


def test_an_unknown_backend_is_told_with_the_ones_there_are():
    toy = declare()
    toy.backend("cuda")(print)
    toy.backend("torch")(print)
    with pytest.raises(InvalidInput) as caught:
        toy.find_backend("cudda")
    assert str(caught.value) == "--backends of toy: 'cudda' is not one of cuda, torch. Did you mean 'cuda'?"


def test_a_former_name_finds_the_backend_of_today():
    toy = declare(renamed={"trtllm": "trtllm-gen", "old": "gone"})
    toy.backend("trtllm-gen")(print)
    assert toy.find_backend("trtllm").name == "trtllm-gen"
    assert toy.find_backend("trtllm") is toy.find_backend("trtllm-gen")
    assert toy.renamed == {"trtllm": "trtllm-gen", "old": "gone"}
    with pytest.raises(InvalidInput, match="'gone' is not one of trtllm-gen"):
        toy.find_backend("old")


def test_without_renaming_a_name_is_a_name():
    toy = declare()
    toy.backend("trtllm-gen")(print)
    assert toy.renamed == {}
    with pytest.raises(InvalidInput, match="'trtllm' is not one of trtllm-gen"):
        toy.find_backend("trtllm")


def test_the_first_unmet_requirement_is_told_with_its_reason():
    toy = declare()
    met = Requirement("air", lambda machine, flags: None)
    first, second = capability(9), case_rule("many rows", lambda case: case.rows > 8)
    toy.backend("fast", requires=[met, second, first])(print)
    backend = toy.find_backend("fast")
    hopper = Machine("cuda:0", "H100", compute_capability=(9, 0))
    assert backend.unmet(hopper, ToyFlags(rows=9)) is None
    assert backend.unmet(hopper, ToyFlags(rows=2)) == (second, "it needs many rows")
    assert backend.unmet(CPU, ToyFlags(rows=2)) == (second, "it needs many rows")
    assert backend.unmet(CPU)[0] is first


def test_a_backend_without_requirements_runs_anywhere():
    toy = declare()
    toy.backend("any")(print)
    assert toy.find_backend("any").unmet(CPU) is None


def test_routines_are_listed_family_by_family():
    @dataclass(frozen=True)
    class Earlier:
        family: ClassVar[str] = "acts"
        backends: tuple[str, ...] = backends_flag()

    declare("first")
    declare("second", flags=Earlier, uses=())
    declare("third")
    names = [name for name in declared_routines() if name in ("first", "second", "third")]
    assert names == ["second", "first", "third"]


def test_what_is_declared_temporarily_is_forgotten_and_what_was_there_stays():
    toy = declare()
    toy.backend("kept")(print)
    with declared_temporarily():
        declare("passing")
        toy.backend("passing")(print)
        assert "passing" in declared_routines()
    assert "passing" not in declared_routines()
    assert list(toy.backends) == ["kept"]


def test_what_is_declared_temporarily_is_forgotten_after_an_error_too():
    with contextlib.suppress(RuntimeError), declared_temporarily():
        declare("passing")
        raise RuntimeError
    assert "passing" not in declared_routines()


def test_what_is_declared_whole_stays():
    with declared_whole():
        declare("kept")
    assert "kept" in declared_routines()


def test_what_is_declared_in_part_is_forgotten_with_the_error_passed_on():
    toy = declare()

    def half_a_plugin():
        declare("passing")
        toy.backend("passing")(print)
        raise SystemExit(3)

    with pytest.raises(SystemExit), declared_whole():
        half_a_plugin()
    assert "passing" not in declared_routines()
    assert list(toy.backends) == []
