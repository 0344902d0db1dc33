"""What holds for every backend of every routine: the rules of docs/architecture.md, found out from the registry."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.judge import judge, probe
from flashinfer_perf.run.launch import Copies, poison, tensors_in
from tests.contract import COVERED
from tests.routines.harness import (
    assert_passes,
    floating,
    launch_of,
    requires_flashinfer,
    run,
    runs_on_cpu,
    storages,
)

HERE = Path(__file__).parent
ON_CPU = runs_on_cpu()
ON_FLASHINFER = [
    (r.name, b.name) for r in all_routines().values() for b in r.backends.values() if requires_flashinfer(b)
]


@pytest.mark.parametrize("name", all_routines())
def test_a_routine_runs_without_a_gpu_and_says_what_it_is(name):
    routine = all_routines()[name]
    assert [backend for routine_name, backend in ON_CPU if routine_name == name]
    assert routine.summary
    assert all(backend.summary for backend in routine.backends.values())


def test_every_flashinfer_backend_has_a_contract_test():
    for file in sorted(HERE.glob("*/test_*.py")):
        importlib.import_module(".".join(file.relative_to(HERE.parent.parent).with_suffix("").parts))
    missing = sorted(set(ON_FLASHINFER) - COVERED)
    assert not missing, f"no test is marked with @covers for {missing}"


def test_contract_tests_are_of_backends_that_exist():
    assert set(ON_FLASHINFER) >= COVERED


@pytest.mark.parametrize("name", all_routines())
def test_backends_on_flashinfer_say_so(name):
    """A backend that reads the package must require it, or it fails where a reason belongs."""
    for backend in all_routines()[name].backends.values():
        assert ("flashinfer" in globals_read_by(backend.prepare)) == requires_flashinfer(backend), backend.name


@pytest.mark.parametrize(("name", "backend"), ON_CPU)
def test_small_cases_pass(name, backend):
    assert_passes(run(name, "", backend))


@pytest.mark.parametrize(("name", "backend"), ON_CPU)
def test_outputs_are_those_that_the_problem_checks(name, backend):
    launch, problem = launch_of(name, backend)
    outputs = launch.outputs(launch())
    assert set(outputs) == set(problem.checks) == set(problem.truth())
    assert all(isinstance(output, torch.Tensor) for output in outputs.values())


@pytest.mark.parametrize(("name", "backend"), ON_CPU)
def test_data_is_reachable(name, backend):
    """What the arguments do not hold is not rotated, and the timed calls would find it in the cache."""
    launch, problem = launch_of(name, backend)
    reachable = storages(launch.data())
    unreachable = [key for key, tensor in floating(problem.tensors).items() if not storages([tensor]) <= reachable]
    assert not unreachable


@pytest.mark.parametrize(("name", "backend"), ON_CPU)
def test_a_call_changes_what_it_declares_and_nothing_else(name, backend):
    launch, _ = launch_of(name, backend)
    for key in launch.mutates:
        for tensor in tensors_in(launch.arguments()[key]):
            tensor.view(torch.uint8).fill_(1)
    before = {key: [t.clone() for t in tensors_in(value)] for key, value in launch.arguments().items()}
    launch()
    changed = {
        key
        for key, value in launch.arguments().items()
        if any(not _same_bytes(*pair) for pair in zip(tensors_in(value), before[key], strict=True))
    }
    assert changed == set(launch.mutates)


@pytest.mark.parametrize(("name", "backend"), ON_CPU)
def test_a_call_on_copies_reads_no_original(name, backend):
    """Rule 9: with the originals set to NaN, the call on rotated copies must still pass its checks."""
    launch, problem = launch_of(name, backend)
    truth = problem.truth()
    copied = launch.on_copies(Copies())
    for tensor in problem.tensors.values():
        tensor.fill_(float("nan") if tensor.dtype.is_floating_point else 0)
    for tensor in launch.data():
        if storages([tensor]).isdisjoint(storages(problem.tensors.values())):
            poison(tensor)
    findings = judge(problem, copied.outputs(copied()), truth) + probe(problem, copied, truth)
    assert findings
    assert all(finding.passed for finding in findings), findings


def globals_read_by(function: Any) -> set[str]:
    """Names of globals in a function's code and in that of its own module's functions that it calls."""
    names, queue = set(), [function]
    while queue:
        code = queue.pop()
        new = set(code.__code__.co_names) - names
        names |= new
        queue += [value for value in map(code.__globals__.get, new) if isinstance(value, FunctionType)]
    return names


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.flatten().contiguous().view(torch.uint8), other.flatten().contiguous().view(torch.uint8))
