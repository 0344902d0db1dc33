"""Exchanges between GPUs: right in every format and routing, started together, and as fast as NCCL.

One rank by itself, or several, each of which runs all tests in step with the others:

    python -m pytest -m gpu tests/gpu/test_moe_a2a.py
    mpirun -np 2 python -m pytest -p no:cacheprovider -n0 -m gpu tests/gpu/test_moe_a2a.py
    torchrun --standalone --nproc-per-node 2 -m pytest -p no:cacheprovider -n0 -m gpu tests/gpu/test_moe_a2a.py
"""

from __future__ import annotations

import os

import pytest
import torch

from flashinfer_perf.core.case import line_grammar, make_case
from flashinfer_perf.core.record import CheckState, Record, Status
from flashinfer_perf.routines import all_routines
from flashinfer_perf.routines.moe_comm.calls import launch_over
from flashinfer_perf.routines.moe_comm.moe_a2a_dispatch_combine import moe_a2a, packed, whole
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.process_group import nccl_group
from flashinfer_perf.run.ranks import Ranks, find_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NAME, REDUCTION = "moe_a2a_dispatch_combine", "allreduce_fusion"
LAYER = "--hidden_size 7168 --num_experts 256 --top_k 8"
FORMATS = ("", "--quant_dtype fp8", "--quant_dtype fp8_block_scale", "--quant_dtype nvfp4")
QUICK = "--device auto --validate --num_iters 5 --dry_run_iters 2"


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return find_ranks()


@pytest.fixture
def several(ranks: Ranks) -> Ranks:
    if ranks.size == 1:
        pytest.skip("needs several ranks: see the module's docstring")
    return ranks


def records_of(ranks: Ranks, name: str, flags: str) -> list[Record]:
    routine = all_routines()[name]
    case = make_case(routine, line_grammar(routine.flags).parse(f"{QUICK} {flags}".split()))
    return [event for event in run_case(case, ranks) if isinstance(event, Record)]


def assert_right(records: list[Record]) -> None:
    for record in records:
        assert (record.status, record.verdict.state) == (Status.OK, CheckState.PASSED), record.reason


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [f"--num_tokens {tokens} {LAYER}" for tokens in (1, 64, 1000)])
def test_nccl_is_right(ranks, shape, format):
    assert_right(records_of(ranks, NAME, f"{shape} {format} --per_phase_timing --backends nccl"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("strategy", [packed, whole])
@pytest.mark.parametrize("shape", ["--num_tokens 33 --hidden_size 256 --num_experts 16 --top_k 2"])
def test_both_exchanges_are_right(ranks, strategy, shape, format):
    """Whichever the sizes would choose: packing by kernels of this project, and none."""

    def prepare(case, problem):
        return launch_over(case, problem, strategy(case, problem, nccl_group(problem.ranks)))

    name = f"nccl {strategy.__name__}"
    moe_a2a.backends.pop(name, None)
    moe_a2a.backend(name)(prepare)
    try:
        routine = all_routines()[NAME]
        grammar = line_grammar(routine.flags)
        case = make_case(routine, grammar.parse([*f"{QUICK} {shape} {format} --backends".split(), name]))
        records = [event for event in run_case(case, ranks) if isinstance(event, Record)]
    finally:
        moe_a2a.backends.pop(name)
    assert_right(records)
    assert records[0].facts["exchange"] == strategy.__name__


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [f"--num_tokens {tokens} {LAYER}" for tokens in (1, 64, 1000)])
def test_moe_alltoall_is_right(several, shape, format):
    assert_right(records_of(several, NAME, f"{shape} {format} --max_num_tokens 1024 --backends moe_a2a"))


@pytest.mark.parametrize("backend", ["nccl", "moe_a2a"])
@pytest.mark.parametrize("format", ["fp8_block_scale", "nvfp4"])
def test_experts_between_the_exchanges_are_right(ranks, backend, format):
    if ranks.size == 1 and backend == "moe_a2a":
        pytest.skip("needs several ranks")
    shape = "--num_tokens 200 --hidden_size 1024 --num_experts 16 --top_k 4 --intermediate_size 512"
    flags = f"{shape} --quant_dtype {format} --real_math --per_phase_timing --backends {backend}"
    assert_right(records_of(ranks, NAME, flags))


def test_ranks_start_together(several):
    """The ranks' own medians agree, and readings hardly vary."""
    (record,) = records_of(several, NAME, f"--num_tokens 4096 {LAYER} --backends nccl --num_iters 50")
    assert_right([record])
    measured = record.measurement
    assert measured.timer == "cuda_event"
    assert measured.timer_facts["rank_skew"] < 0.05 * measured.summary.median_ms
    assert measured.summary.std_ms < 0.05 * measured.summary.median_ms


def test_no_multicast(ranks):
    nccl_group(ranks)
    assert os.environ["NCCL_NVLS_ENABLE"] == "0"


@pytest.mark.parametrize("pattern", ["allreduce", "ar_residual_rmsnorm"])
@pytest.mark.parametrize("tokens", [1, 64, 1000])
@pytest.mark.parametrize("backend", ["nccl", "trtllm_oneshot", "trtllm_twoshot"])
def test_all_reduce_is_right(several, backend, tokens, pattern):
    if backend == "trtllm_twoshot" and tokens <= several.size:
        pytest.skip("two shots need more tokens than ranks")
    flags = f"--num_tokens {tokens} --hidden_size 4096 --pattern {pattern} --backends {backend}"
    assert_right(records_of(several, REDUCTION, flags))


def test_nvtx_leaves_cupti_to_the_profiler():
    (record,) = records_of(find_alone(), NAME, f"--num_tokens 16 {LAYER} --nvtx --backends nccl")
    assert_right([record])
    assert record.measurement.timer != "cupti"


def find_alone() -> Ranks:
    from flashinfer_perf.run.ranks import SingleRank, number_started

    if number_started() > 1:
        pytest.skip("needs to be alone: several ranks are never timed by CUPTI")
    return SingleRank()
