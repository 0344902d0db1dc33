"""``make bench-harness``: what it runs, and what it makes of the numbers."""

from __future__ import annotations

import itertools
import sys

import pytest

from benchmarks import bench_harness
from flashinfer_perf.routines import all_routines

ROUTINES = all_routines()


@pytest.mark.parametrize("name", ROUTINES)
def test_every_routine_has_a_smallest_case(bench, name):
    assert bench(f"--plan --routine {name} {bench_harness.smallest(ROUTINES[name])}").code == 0


def test_the_tiny_cases_are_all_different_and_run(bench, testlist):
    lines = list(itertools.islice(bench_harness.tiny_lines(), 2 * len(ROUTINES)))
    assert len(set(lines)) == len(lines)
    path = testlist("".join(f"{line}\n" for line in lines))
    assert bench(f"--testlist {path} --device cpu --refcheck -n 1 -d 0").code == 0


@pytest.mark.slow
def test_one_repetition(monkeypatch, testlist):
    monkeypatch.setattr(bench_harness, "WARM", 2)
    lines = itertools.islice(bench_harness.tiny_lines(), 4)
    help_s, plan_s, case_ms, growth_mib = bench_harness.measure(str(testlist("".join(f"{line}\n" for line in lines))))
    assert 0 < help_s < case_ms / 1e3 * 4
    assert 0 < plan_s < case_ms / 1e3 * 4
    assert abs(growth_mib) < 1000


@pytest.mark.parametrize(("slowest", "code"), [(0.1, 0), (0.3, 1)])
def test_the_median_decides(monkeypatch, capsys, slowest, code):
    runs = iter([(0.1, 0.5, 8.0, 1.0), (slowest, 0.5, 8.0, 1.0), (slowest, 0.5, 8.0, 1.0)])
    monkeypatch.setattr(bench_harness, "measure", lambda testlist: next(runs))
    monkeypatch.setattr(sys, "argv", ["bench_harness.py"])
    assert bench_harness.main() == code
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(rows) == len(bench_harness.LIMITS)
    assert (rows[0][0], float(rows[0][1]), rows[0][-1]) == ("--help", slowest, "FAIL" if code else "pass")
    assert all(row[-1] == "pass" for row in rows[1:])
