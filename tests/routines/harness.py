"""Runs small cases of real routines on the CPU: through the whole engine, or just up to the launch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from flashinfer_perf.core.case import Case, line_grammar, make_case
from flashinfer_perf.core.record import CheckState, Record, Status
from flashinfer_perf.core.routine import Backend, Routine, declared_temporarily
from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import SingleRank

LENGTHS = "--batch_size 3 --s_kv 21 --random_actual_seq_len"
ATTENTION = f"{LENGTHS} --num_qo_heads 4 --num_kv_heads 2 --head_dim_qk 16"
SMALL = {
    "norm": "--batch_size 3 --hidden_size 64",
    "BatchDecodeWithPagedKVCacheWrapper": f"{ATTENTION} --page_size 4 --s_qo 2",
    "BatchPrefillWithPagedKVCacheWrapper": f"{ATTENTION} --page_size 4 --s_qo 7 --causal",
    "BatchPrefillWithRaggedKVCacheWrapper": f"{ATTENTION} --s_qo 7 --causal",
    "BatchMLAPagedAttentionWrapper": f"{LENGTHS} --page_size 4 --num_qo_heads 2 --head_dim_ckv 16 --head_dim_kpe 8",
    "sampling": "--batch_size 4 --vocab_size 30 --top_k 20",
    "quantization": "--m 3 --k 64",
    "nvfp4_batched_quantize": "--batch_size 2 --m 3 --k 64",
    "gemm": "--m 8 --n 256 --k 256",
    "rope": "--batch_size 2 --seq_len 7 --num_qo_heads 3 --num_kv_heads 2 --head_dim 24 --rotary_dim 16 --page_size 4",
    "mla_rope_quantize_fp8": "--batch_size 2 --seq_len 7 --num_qo_heads 3 --head_dim 24 --no_rope_dim 16",
    "allreduce_comm": "--num_tokens 5 --hidden_size 48 --pattern ar_residual_rmsnorm",
    "moe": "--num_tokens 5 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2",
    "moe_comm": "--num_tokens 6 --hidden_size 10 --num_experts 4 --top_k 2",
}
"""A small valid case of every family, or of a routine by its own name, for the tests that hold for all of them."""

GIBIBYTE = 1 << 30


def routine_named(name: str) -> Routine:
    return all_routines()[name]


def small(name: str) -> str:
    """The flags of a routine's small case."""
    found = SMALL.get(name) or SMALL.get(routine_named(name).family)
    assert found, f"add a small case of {name}, or of its family, to SMALL in {__file__}"
    return found


def case_of(name: str, flags: str = "", **options: Any) -> Case:
    """A case on the CPU, checked, timed twice. ``flags`` are as typed; without any, the small case."""
    routine = routine_named(name)
    typed = f"{flags or small(name)} --device cpu --refcheck --num_iters 2 --dry_run_iters 1"
    for option, value in options.items():
        typed += f" --{option} {value}"
    return make_case(routine, line_grammar(routine.flags).parse(typed.split()))


def records_of(case: Case) -> list[Record]:
    """What the engine says about a case."""
    return [event for event in run_case(case, SingleRank()) if isinstance(event, Record)]


def run(name: str, flags: str, backend: str) -> Record:
    """The record of one backend."""
    (record,) = records_of(case_of(name, f"{flags or small(name)} --backends {backend}"))
    return record


def assert_passes(record: Record) -> None:
    assert (record.status, record.verdict.state) == (Status.OK, CheckState.PASSED), record.reason
    assert record.measurement is not None
    assert record.measurement.summary.samples == 2


def assert_caught(record: Record) -> None:
    """Found to be wrong, and for that reason not timed."""
    assert record.status is Status.MISMATCH, f"{record.status}: {record.reason}"
    assert record.verdict.state is CheckState.MISMATCH
    assert record.measurement is None
    assert any(not finding.passed for finding in record.verdict.findings)


@contextlib.contextmanager
def backend_of(name: str, prepare: Callable[[Any, Problem], Launch], backend: str = "broken") -> Iterator[None]:
    """A routine with one more backend."""
    with declared_temporarily():
        routine_named(name).backend(backend)(prepare)
        yield


def run_broken(name: str, prepare: Callable[[Any, Problem], Launch], flags: str = "") -> Record:
    """The record of a backend that is declared for this one run."""
    with backend_of(name, prepare):
        return run(name, flags, "broken")


def make_problem(case: Case) -> Problem:
    factory = TensorFactory("cpu", case.options.random_seed, GIBIBYTE, SingleRank())
    return case.routine.make(case.flags, factory)


def problem_of(name: str, flags: str = "") -> tuple[Any, Problem]:
    """The flags and the problem of a case."""
    case = case_of(name, flags)
    return case.flags, make_problem(case)


def launch_of(name: str, backend: str, flags: str = "") -> tuple[Launch, Problem]:
    """A backend's launch and the problem that it is for, whatever the backend requires of the machine."""
    values, problem = problem_of(name, flags)
    return routine_named(name).backends[backend].prepare(values, problem), problem


@contextlib.contextmanager
def unconditional(name: str, backend: str) -> Iterator[None]:
    """A backend without its requirements: with a stand-in for the library it runs on the CPU."""
    with declared_temporarily():
        routine = routine_named(name)
        routine.backends[backend] = dataclasses.replace(routine.backends[backend], requires=())
        yield


def runs_on_cpu() -> list[tuple[str, str]]:
    """(routine, backend) of all that this machine's CPU can run."""
    machine = find_machine("cpu")
    return [(r.name, b.name) for r in all_routines().values() for b in r.backends.values() if b.unmet(machine) is None]


def requires_flashinfer(backend: Backend) -> bool:
    return any(requirement.text == "flashinfer installed" for requirement in backend.requires)


def storages(tensors: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def floating(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The bulk data among a problem's tensors."""
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
