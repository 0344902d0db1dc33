"""mm_fp8: its calls, its check, and kernels that this must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats.shuffle import shuffle_rows
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.routines.gemm.kernels import (
    assert_all_caught,
    assert_outputs_are_judged,
    assert_refused,
    assert_runs_nowhere_without_gpu,
    given_out,
    replaced,
    short_by,
)
from tests.routines.harness import assert_passes, case_of, launch_of, problem_of, run

NAME = "mm_fp8"
CASE = "--m 5 --n 128 --k 256"
PLAIN = ["cutedsl_low_latency", "cublas", "cudnn", "cutlass", "auto"]
LIBRARY = ["trtllm_low_latency", *PLAIN]


@covers(NAME, *LIBRARY)
@pytest.mark.parametrize("backend", LIBRARY)
def test_calls_flashinfer_as_it_declares(backend):
    with contract("flashinfer.gemm.mm_fp8", given_out) as kernel:
        launch, problem = launch_of(NAME, backend, CASE)
        returned = launch()
    call = kernel.calls[-1]
    assert call["a"] is problem["a"]
    assert call["alpha"] is problem["alpha"]
    assert call["out"].dtype is call["out_dtype"] is torch.bfloat16
    assert call["out"].shape == (5, 128)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}
    if backend in PLAIN:
        assert call["b"] is problem["b"]


def test_trtllm_gets_prepared_weights():
    """Rows shuffled, then blocks of 128 along k one behind the other."""
    with contract("flashinfer.gemm.mm_fp8", given_out) as kernel:
        launch, problem = launch_of(NAME, "trtllm_low_latency", CASE)
        launch()
    prepared = kernel.call["b"]
    assert prepared.shape == (2, 128, 128)
    assert prepared.dtype is torch.float8_e4m3fn
    expected = shuffle_rows(problem["b"].view(torch.uint8)).unflatten(1, (-1, 128)).transpose(0, 1)
    assert torch.equal(prepared.view(torch.uint8), expected)


FORMATS = ["fp8_e4m3", "fp8_e5m2"]


@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize("mat2_dtype", FORMATS)
@pytest.mark.parametrize("sizes", ["--m 1 --n 1 --k 1", CASE, "--m 8 --n 128 --k 7168", "--m 33 --n 7 --k 5"])
def test_torch_passes(sizes, input_dtype, mat2_dtype):
    assert_passes(run(NAME, f"{sizes} --input_dtype {input_dtype} --mat2_dtype {mat2_dtype}", "torch"))


@pytest.mark.parametrize("input_dtype", FORMATS)
def test_pytorchs_scaled_product_passes(input_dtype, monkeypatch):
    """PyTorch has one for the CPU, too."""
    monkeypatch.setattr("flashinfer_perf.routines.gemm.eager.has_fp8_units", lambda device: True)
    record = run(NAME, f"{CASE} --input_dtype {input_dtype}", "torch")
    assert_passes(record)
    assert record.resolved_backend == "torch._scaled_mm"


@pytest.mark.parametrize("flags", [CASE, "--m 16 --n 128 --k 4096"])
def test_what_is_wrong_with_an_output_is_caught(flags):
    assert_outputs_are_judged(NAME, flags)


def test_wrong_arguments_are_caught():
    changes = {
        "alpha forgotten": replaced("alpha", torch.ones_like),
        "alpha's reciprocal": replaced("alpha", torch.reciprocal),
        "alpha squared": replaced("alpha", torch.square),
        "half of k": short_by(128),
        "the last instruction": short_by(32),
        "rows of B shuffled": replaced("b", lambda b: shuffle_rows(b.view(torch.uint8)).view(b.dtype)),
        "rows of A shifted": replaced("a", lambda a: a.roll(1, 0)),
        "A read as e5m2": replaced("a", lambda a: a.view(torch.float8_e5m2)),
    }
    assert_all_caught(NAME, changes, CASE)


def test_problem():
    _, problem = problem_of(NAME, f"{CASE} --mat2_dtype fp8_e5m2")
    assert {name: (tuple(t.shape), t.dtype) for name, t in problem.tensors.items()} == {
        "a": ((5, 256), torch.float8_e4m3fn),
        "b": ((128, 256), torch.float8_e5m2),
        "alpha": ((), torch.float32),
    }
    expected = problem["a"].double() @ problem["b"].double().T * problem["alpha"].double()
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)
    assert float(expected.std()) == pytest.approx(16, rel=0.1)
    assert problem.work == Work(2 * 5 * 128 * 256, 5 * 256 + 128 * 256 + 2 * 5 * 128)


@pytest.mark.parametrize("backend", LIBRARY)
def test_without_a_gpu_flashinfer_says_why(backend):
    assert_runs_nowhere_without_gpu(NAME, backend, CASE)


@pytest.mark.parametrize(
    ("backend", "flags", "says"),
    [
        ("trtllm_low_latency", "--k 192", "k must be divisible by 128"),
        ("trtllm_low_latency", "--n 48", "n must be divisible by 32"),
        ("trtllm_low_latency", "--input_dtype fp8_e5m2", "e4m3 operands only"),
        ("cutedsl_low_latency", "--m 9", "8 rows at most"),
        ("cutedsl_low_latency", "--k 192", "k must be divisible by 128"),
        ("cublas", "--input_dtype fp8_e5m2 --mat2_dtype fp8_e5m2", "no product of e5m2 with e5m2"),
        ("cublas", "--k 24", "k divisible by 16"),
        ("cutlass", "--mat2_dtype fp8_e5m2", "e4m3 operands only"),
    ],
)
def test_limits(backend, flags, says):
    assert_refused(NAME, backend, f"{CASE} {flags}", says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 1 --n 8", "missing required flag --k"),
        (f"{CASE} --input_dtype bfloat16", "--input_dtype: 'bfloat16' is not one of fp8_e4m3, fp8_e5m2"),
        (f"{CASE} --out_dtype float16", "--out_dtype: 'float16' is not one of bfloat16"),
    ],
)
def test_bad_input(flags, says):
    with pytest.raises(InvalidInput) as refusal:
        case_of(NAME, flags)
    assert says in str(refusal.value)


def test_what_cannot_fit_is_refused_with_both_byte_counts():
    case = case_of(NAME, "--m 65536 --n 65536 --k 65536")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(65536 * 65536 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)
