"""Runs cases of real routines on the GPU, and tells which kernels a backend starts."""

from __future__ import annotations

import torch

from flashinfer_perf.core.case import Case, line_grammar, make_case
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import CheckState, Record, Status
from flashinfer_perf.device.machine import find_machine, free_bytes
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing.activity import ActivityLog

QUICK = "--device cuda --refcheck --num_iters 3 --dry_run_iters 1 -vv"


def case_of(name: str, flags: str) -> Case:
    routine = all_routines()[name]
    return make_case(routine, line_grammar(routine.flags).parse(f"{flags} {QUICK}".split()))


def records_of(case: Case) -> list[Record]:
    return [event for event in run_case(case, SingleRank()) if isinstance(event, Record)]


def runnable(case: Case, machine: Machine) -> list[str]:
    return [name for name, backend in case.routine.backends.items() if backend.unmet(machine, case.flags) is None]


def assert_all_right(name: str, flags: str) -> list[Record]:
    """Every backend that runs here is measured and right: its first call's output, and the last timed one's."""
    names = runnable(case_of(name, flags), find_machine("cuda"))
    records = records_of(case_of(name, f"{flags} --backends {' '.join(names)}"))
    found = {record.backend: (record.status, record.verdict.state, record.reason) for record in records}
    assert found == dict.fromkeys(names, (Status.OK, CheckState.PASSED, ""))
    return records


def kernels_of(name: str, flags: str, backend_name: str) -> tuple[set[str], str]:
    """Names of the GPU kernels that one call of a backend starts, after a first call; and ``resolved_backend``."""
    case, machine = case_of(name, flags), find_machine("cuda")
    backend = case.routine.backends[backend_name]
    make = TensorFactory(machine.device, 42, free_bytes(machine), SingleRank())
    with backend.state():
        launch = backend.prepare(case.flags, case.routine.make(case.flags, make))
        launch()
        torch.cuda.synchronize()
        log = ActivityLog()  # not torch.profiler: after it the clock gets no more records in this process
        log.open()
        try:
            launch()
            torch.cuda.synchronize()
            return {activity.name for activity in log.take()}, launch.resolved_backend
        finally:
            log.close()
