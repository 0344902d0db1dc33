"""moe_a2a_dispatch_combine on one rank, within this process; under mpirun: ``test_several_ranks.py``."""

from __future__ import annotations

import math

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import CheckState
from flashinfer_perf.routines.moe_comm.calls import NO_CUPTI
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.moe_a2a_dispatch_combine import moe_a2a
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import messages
from tests.routines.harness import (
    GIBIBYTE,
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    records_of,
    run,
    run_broken,
)
from tests.routines.moe_comm.broken import ON_ONE_RANK, ONLY_WITH_SCALES, prepare_with, whole_over_gloo
from tests.routines.moe_comm.ranks import Rank

NAME = "moe_a2a_dispatch_combine"
CASE = "--num_tokens 24 --hidden_size 32 --num_experts 8 --top_k 3"
BLOCKS = "--num_tokens 9 --hidden_size 128 --num_experts 8 --top_k 3 --quant_dtype"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags",
    [
        "--num_tokens 1 --hidden_size 1 --num_experts 1 --top_k 1",
        "--num_tokens 1 --hidden_size 8 --num_experts 4 --top_k 4",
        "--num_tokens 33 --hidden_size 7 --num_experts 5 --top_k 1 --quant_dtype fp8",
        "--num_tokens 5 --hidden_size 48 --num_experts 9 --top_k 9 --quant_dtype nvfp4 --max_num_tokens 8",
        "--num_tokens 6 --hidden_size 256 --num_experts 32 --top_k 8 --quant_dtype fp8_block_scale",
    ],
)
def test_gloo_passes(flags, dtype):
    record = run(NAME, f"{flags} --input_dtype {dtype}", "gloo")
    assert_passes(record)
    assert record.facts["experts_by"] == "", "there are none"


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_a_broken_exchange_is_caught(name):
    assert_caught(run_broken(NAME, prepare_with(ON_ONE_RANK[name]), CASE))


@pytest.mark.parametrize("format", ["nvfp4", "fp8_block_scale"])
def test_scales_that_went_astray_are_caught(format):
    record = run_broken(NAME, prepare_with(ONLY_WITH_SCALES["scales_of_another"]), f"{BLOCKS} {format}")
    assert_caught(record)
    assert "2 have other contents" in record.reason


@pytest.mark.parametrize("flags", [CASE, f"{BLOCKS} fp8", f"{BLOCKS} nvfp4", f"{BLOCKS} fp8_block_scale"])
def test_the_exchange_without_packing_passes(flags):
    record = run_broken(NAME, whole_over_gloo, flags)
    assert_passes(record)
    assert (record.facts["exchange"], record.facts["sent_bytes"]) == ("whole", 0)


def test_validate_checks_without_refcheck():
    case = case_of(NAME, f"{CASE} --backends gloo")
    unchecked = [flag for flag in ("--validate", "") for _ in [0]]
    states = []
    for flag in unchecked:
        checked = case_of(NAME, f"{CASE} --backends gloo {flag}")
        options = type(checked.options)(**{**vars(checked.options), "refcheck": False})
        (record,) = records_of(type(case)(**{**vars(checked), "options": options}))
        states.append(record.verdict.state)
    assert states == [CheckState.PASSED, CheckState.NOT_CHECKED]


def test_phases_are_timed_one_by_one_only_where_that_was_asked_for():
    (record,) = records_of(case_of(NAME, CASE))
    assert record.measurement.phases_ms == {}
    assert record.measurement.total_name == "a2a_total"
    (record,) = records_of(case_of(NAME, f"{CASE} --per_phase_timing"))
    assert list(record.measurement.phases_ms) == list(record.phase_work) == ["a2a_dispatch", "a2a_combine"]
    for total, *phases in zip(record.measurement.samples_ms, *record.measurement.phases_ms.values(), strict=True):
        assert total == pytest.approx(sum(phases))


MATH = f"{CASE.replace('32', '128')} --real_math --intermediate_size 128 --quant_dtype"


@pytest.mark.parametrize("format", ["nvfp4", "fp8_block_scale"])
def test_experts_between_the_exchanges(format):
    record = run(NAME, f"{MATH} {format} --per_phase_timing", "gloo")
    assert_passes(record)
    assert (
        list(record.measurement.phases_ms) == list(record.phase_work) == ["a2a_dispatch", "moe_kernel", "a2a_combine"]
    )
    assert record.phase_work["moe_kernel"].flops == 6 * 24 * 3 * 128 * 128
    assert math.isnan(record.work.flops)


@pytest.mark.parametrize("name", ["one_token_off", "one_nan", "twice", "weights_of_another", "experts_one_too_high"])
def test_a_broken_exchange_is_caught_with_experts_too(name):
    assert_caught(run_broken(NAME, prepare_with(ON_ONE_RANK[name]), f"{MATH} nvfp4"))


def test_nvtx_switches_the_clock():
    launch, _ = launch_of(NAME, "gloo", f"{CASE} --nvtx")
    assert launch.no_cupti == NO_CUPTI
    launch, _ = launch_of(NAME, "gloo", CASE)
    assert launch.no_cupti == ""


# ---- What it refuses ----


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--num_tokens 4 --hidden_size 8 --num_experts 4 --top_k 5", r"top_k \(5\) must not exceed num_experts \(4\)"),
        (f"{CASE} --max_num_tokens 23", r"max_num_tokens \(23\) must be at least num_tokens \(24\)"),
        (
            f"{CASE} --quant_dtype fp8_block_scale",
            r"hidden_size \(32\) must be divisible by .* 128 for fp8_block_scale",
        ),
        ("--num_tokens 4 --hidden_size 8 --num_experts 4 --top_k 1 --quant_dtype nvfp4", "16 for nvfp4"),
        (f"{CASE} --real_math", "--real_math needs --quant_dtype nvfp4 or fp8_block_scale; it is not given"),
        (f"{CASE} --real_math --quant_dtype fp8 --intermediate_size 64", "needs --quant_dtype nvfp4 or fp8_block"),
        (f"{CASE} --real_math --quant_dtype nvfp4", "--real_math needs --intermediate_size"),
        (f"{CASE} --intermediate_size 64", r"intermediate_size \(64\) must come with --real_math"),
        (f"{CASE} --real_math --quant_dtype nvfp4 --intermediate_size 72", r"\(72\) must be divisible by 64"),
    ],
)
def test_flags_that_do_not_go_together(flags, text):
    with pytest.raises(InvalidInput, match=text):
        problem_of(NAME, flags)


def test_experts_that_cannot_be_shared_equally_are_invalid():
    flags = case_of(NAME, "--num_tokens 4 --hidden_size 8 --num_experts 4 --top_k 2").flags
    with pytest.raises(InvalidInput, match=r"num_experts \(4\) must be divisible by the number of ranks \(3\); give a"):
        moe_a2a.make(flags, TensorFactory("cpu", 42, GIBIBYTE, Rank(0, 3)))


def refusal(backend: str, flags: str, machine: Machine) -> str:
    found = moe_a2a.backends[backend].unmet(machine, case_of(NAME, flags).flags)
    return found[1] if found else ""


def test_each_backend_says_where_it_runs(monkeypatch):
    gpu, cpu = Machine("cuda:0", "fake", (9, 0)), Machine("cpu", "cpu")
    assert "host memory" in refusal("gloo", CASE, gpu)
    assert "from GPU to GPU" in refusal("nccl", CASE, cpu)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    assert refusal("nccl", CASE, gpu) == "this build of PyTorch has no NCCL"
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    assert refusal("nccl", CASE, gpu) == ""
    monkeypatch.setattr("flashinfer_perf.core.requirement.is_installed", lambda name: True)
    aligned = "--num_tokens 4 --hidden_size 64 --num_experts 8 --top_k"
    assert refusal("moe_a2a", f"{aligned} 2", gpu) == ""
    assert "only top_k of 1, 2, 4" in refusal("moe_a2a", f"{aligned} 3", gpu)
    assert "divisible by 64" in refusal("moe_a2a", "--num_tokens 4 --hidden_size 8 --num_experts 8 --top_k 2", gpu)
    assert "compute capability" in refusal("moe_a2a", f"{aligned} 2", cpu)


def test_every_flag_of_upstreams_is_there():
    names = "num_tokens hidden_size num_experts top_k input_dtype quant_dtype real_math intermediate_size"
    assert [*specs_of(MoeCommFlags)][:12] == [*names.split(), "max_num_tokens", "validate", "nvtx", "per_phase_timing"]


def test_shown():
    """In the documents' words: the first two are [INFO] lines under -v."""
    _, problem = problem_of(NAME, CASE)
    assert [(line.text, line.level, line.as_info) for line in problem.shown] == [
        ("ep_size=1, rank=0", 1, True),
        ("Inter-rank traffic: dispatch=0.000 MiB, combine=0.000 MiB", 1, True),
        ("hidden.shape = torch.Size([24, 32])", 2, False),
        ("expert_ids.shape = torch.Size([24, 3])", 2, False),
    ]


def test_the_last_line_says_what_the_figures_are_of():
    """It begins as documented; that a sample is the slowest rank's time is this program's own rule."""
    _, problem = problem_of(NAME, CASE)
    assert [message.line for message in messages(problem.closing, verbosity=0)] == [
        "[INFO] The reported achieved tflops/tb_per_sec is the aggregate FLOPS/bandwidth of all participating ranks, "
        "over each iteration's time on its slowest rank."
    ]
