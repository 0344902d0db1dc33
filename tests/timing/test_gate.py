"""The gate's length; the gate itself needs a GPU (tests/gpu/test_clocks.py)."""

from __future__ import annotations

import pytest

from flashinfer_perf.timing.gate import MAX_SPIN_MS, MIN_SPIN_MS, SPIN_FACTOR, GateLength


@pytest.mark.parametrize("enqueue_ms", [0.05, 0.3, 7.0])
def test_a_spin_lasts_at_least_twice_as_long_as_enqueueing(enqueue_ms: float):
    assert GateLength(enqueue_ms).spin_ms >= 2 * enqueue_ms
    assert SPIN_FACTOR >= 2


def test_a_spin_is_never_shorter_than_the_minimum():
    assert GateLength(0.0).spin_ms == MIN_SPIN_MS


def test_a_sample_whose_gate_held_counts():
    gate = GateLength(0.1)
    assert gate.accept(held=True)
    assert (gate.voided, gate.ungated) == (0, False)


def test_a_sample_whose_gate_opened_early_is_void_and_the_spin_doubles():
    gate = GateLength(0.1)
    before = gate.spin_ms
    assert not gate.accept(held=False)
    assert gate.spin_ms == 2 * before
    assert gate.voided == 1


def test_beyond_the_cap_samples_count_ungated_and_that_is_said():
    gate = GateLength(0.1)
    tries = 0
    while not gate.accept(held=False):
        tries += 1
        assert gate.spin_ms <= 2 * MAX_SPIN_MS
    assert tries == gate.voided
    assert gate.ungated
    assert gate.description.startswith("ungated")


def test_what_takes_longer_to_launch_than_the_cap_is_never_gated():
    assert GateLength(MAX_SPIN_MS).ungated


def test_the_description_says_how_long_the_spin_is():
    assert GateLength(0.1).description == "gated by a spin of 0.2 ms"
