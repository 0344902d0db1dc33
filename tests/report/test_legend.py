"""The legend: a short line for each backend's name."""

from __future__ import annotations

from types import SimpleNamespace

from flashinfer_perf.report.legend import MEANINGS, legend
from flashinfer_perf.routines import all_routines

BACKENDS = [backend for routine in all_routines().values() for backend in routine.backends.values()]


def test_every_name_has_a_meaning_and_every_meaning_a_backend():
    assert set(MEANINGS) == {backend.name for backend in BACKENDS}


def test_a_line_is_short_and_there_is_one_for_each_name():
    lines = legend(BACKENDS).splitlines()
    assert len(lines) == len(MEANINGS)
    assert max(map(len, lines)) < 100
    assert "- torch: PyTorch's operators: runs everywhere" in lines


def test_a_name_of_somebody_elses_package_says_what_its_backend_says():
    backends = [SimpleNamespace(name="mine", summary=f"{what}.") for what in ("My kernel", "Another")]
    assert legend(backends) == "- mine: My kernel"
