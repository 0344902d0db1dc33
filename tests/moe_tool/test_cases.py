from __future__ import annotations

from dataclasses import replace

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.moe_tool import cases, vllm
from flashinfer_perf.moe_tool.cases import CONTESTANTS, cases_of, runnable
from tests.moe_tool.layers import BLACKWELL, CPU, HOPPER, SHAPE

FP8, NVFP4 = CONTESTANTS
OPTIONS = build(Options, specs_of(Options), {})


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda module: True)


def first(contestant, machine, **changes):
    """What would run: the first backend whose requirements are met."""
    flags = runnable(contestant, replace(SHAPE, **changes), machine)
    backends = contestant.routine.backends.values()
    return next(backend.name for backend in backends if not backend.unmet(machine, flags))


def test_on_a_gpu_each_contestant_runs_without_and_with_graphs_and_is_checked():
    found = cases_of([SHAPE], HOPPER, OPTIONS, lambda shape: "again")
    assert [(case.routine.name, case.options.no_cuda_graph) for case in found] == [
        ("triton_moe", True),
        ("triton_moe", False),
        ("cutlass_moe_fp4", True),
        ("cutlass_moe_fp4", False),
    ]
    assert all(case.options.refcheck and case.repro_command == "again" and not case.backends for case in found)


def test_on_the_cpu_there_are_no_graphs():
    assert [case.options.no_cuda_graph for case in cases_of([SHAPE], CPU, OPTIONS, str)] == [True, True]


def test_cases_of_both_configurations_have_ids_of_their_own():
    shapes = [SHAPE, replace(SHAPE, per_act_token=True), replace(SHAPE, per_out_ch=True), replace(SHAPE, m=10)]
    assert len({case.case_id for case in cases_of(shapes, CPU, OPTIONS, str)}) == 8


@pytest.mark.parametrize(("machine", "name"), [(HOPPER, "triton"), (BLACKWELL, "triton"), (CPU, "torch")])
def test_fp8_without_vllm(machine, name):
    assert first(FP8, machine) == name


@pytest.mark.parametrize("per_out_ch", [False, True])
def test_fp8_of_sizes_that_our_kernels_do_not_take_goes_to_torch(per_out_ch):
    """As gpt-oss has on four ranks: n = 720."""
    assert first(FP8, HOPPER, n=80, per_out_ch=per_out_ch) == "torch"
    assert first(FP8, HOPPER, n=96, per_out_ch=per_out_ch) == "triton"


@pytest.mark.parametrize(
    ("machine", "changes", "name", "activations"),
    [
        (BLACKWELL, {}, "flashinfer", DType.NVFP4),
        (BLACKWELL, {"n": 96}, "torch", DType.FLOAT16),  # neither library's tiles nor ours
        (HOPPER, {}, "triton", DType.FLOAT16),
        (HOPPER, {"n": 96}, "torch", DType.FLOAT16),
        (CPU, {}, "torch", DType.FLOAT16),
    ],
)
def test_nvfp4_without_vllm(machine, changes, name, activations):
    assert first(NVFP4, machine, **changes) == name
    assert runnable(NVFP4, replace(SHAPE, **changes), machine).quant_dtype is activations


@pytest.mark.usefixtures("with_vllm")
def test_vllm_comes_first_where_its_kernels_run():
    assert first(FP8, HOPPER) == "vllm"
    assert first(FP8, HOPPER, per_act_token=True, per_out_ch=True) == "vllm"
    assert first(FP8, HOPPER, per_act_token=True) == "triton"
    assert first(NVFP4, BLACKWELL) == "vllm"
    assert first(NVFP4, HOPPER) == "triton"
    assert first(FP8, CPU) == first(NVFP4, CPU) == "torch"


def test_a_fallback_is_named_as_what_it_is():
    summaries = {name: backend.summary for name, backend in NVFP4.routine.backends.items()}
    assert summaries == {
        "vllm": "W4A4 by vLLM's CUTLASS kernels",
        "flashinfer": "W4A4 by FlashInfer's CUTLASS kernels",
        "triton": "W4A16 fallback by this project's Triton kernels",
        "torch": "W4A16 fallback in PyTorch",
    }
    assert cases.ROUTINES["triton_moe"].backends["triton"].summary == "W8A8 by this project's Triton kernels"
