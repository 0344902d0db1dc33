"""mm_bf16 and bmm_bf16: their calls, their checks, and kernels that these must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.gemm import backends
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

MM, BMM = "mm_bf16", "bmm_bf16"
CASE = "--m 5 --n 48 --k 192"
BATCHED = f"{CASE} --batch_size 3"
OF_MM = ["cudnn", "cublaslt", "cutlass", "tgv", "tinygemm", "cutile", "cute-dsl", "auto"]
OF_BMM = ["cudnn", "cutlass", "tgv", "cutile", "cake", "auto"]
BOTH = pytest.mark.parametrize(("name", "case"), [(MM, CASE), (BMM, BATCHED)])


# ---- Calls of FlashInfer ----


@covers(MM, *OF_MM)
@pytest.mark.parametrize("backend", OF_MM)
@pytest.mark.parametrize("flags", ["", "--bias", "--enable_pdl --out_dtype float32", "--bias --out_dtype float16"])
def test_mm_calls_flashinfer_as_it_declares(backend, flags):
    with contract("flashinfer.gemm.mm_bf16", given_out) as kernel:
        launch, problem = launch_of(MM, backend, f"{CASE} {flags}")
        returned = launch()
    call = kernel.calls[-1]
    assert call["a"] is problem["a"]
    assert call["b"] is problem["b"]
    assert call["bias"] is (problem["bias"] if "--bias" in flags else None)
    assert call["pdl"] is ("--enable_pdl" in flags)
    wanted = {"--enable_pdl --out_dtype float32": torch.float32, "--bias --out_dtype float16": torch.float16}
    assert call["out"].dtype is call["out_dtype"] is wanted.get(flags, torch.bfloat16)
    assert call["out"].shape == (5, 48)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}


@covers(BMM, *OF_BMM)
@pytest.mark.parametrize("backend", OF_BMM)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bmm_calls_flashinfer_as_it_declares(backend, out_dtype):
    with contract("flashinfer.gemm.bmm_bf16", given_out) as kernel:
        launch, problem = launch_of(BMM, backend, f"{BATCHED} --out_dtype {str(out_dtype).partition('.')[2]}")
        returned = launch()
    call = kernel.calls[-1]
    assert call["A"] is problem["a"]
    assert call["B"] is problem["b"]
    assert call["out"].dtype is call["out_dtype"] is out_dtype
    assert call["out"].shape == (3, 5, 48)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}


# ---- Right kernels pass, wrong ones are caught ----


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("sizes", ["--m 1 --n 1 --k 1", CASE, "--m 16 --n 64 --k 7168", "--m 33 --n 7 --k 5"])
@pytest.mark.parametrize(("name", "more"), [(MM, ""), (MM, "--bias"), (BMM, "--batch_size 2")])
def test_torch_passes(name, sizes, out_dtype, more):
    assert_passes(run(name, f"{sizes} --out_dtype {out_dtype} {more}", "torch"))


@BOTH
def test_what_is_wrong_with_an_output_is_caught(name, case):
    assert_outputs_are_judged(name, case)
    assert_outputs_are_judged(name, f"{case} --k 4096 --out_dtype float32")


@BOTH
def test_wrong_arguments_are_caught(name, case):
    changes = {
        "half of k": short_by(96),
        "one product short": short_by(1),
        "rows of A shifted": replaced("a", lambda a: a.roll(1, -2)),
        "columns of B shifted": replaced("b", lambda b: b.roll(1, -1)),
        "B not transposed": replaced("b", lambda b: b.mT.reshape(b.shape)),
        "A rounded to FP8": replaced("a", lambda a: a.to(torch.float8_e4m3fn).to(a.dtype)),
    }
    assert_all_caught(name, changes, case)


def test_batch_entries_that_are_mixed_up_are_caught():
    changes = {
        "A in another order": replaced("a", lambda a: a.flip(0)),
        "B in another order": replaced("b", lambda b: b.flip(0)),
        "the first entry for all": replaced("b", lambda b: b[:1].expand_as(b)),
    }
    assert_all_caught(BMM, changes, BATCHED)


@pytest.mark.parametrize("k", [16, 192, 16384])
def test_a_wrong_bias_is_caught_however_long_the_sums_are(k):
    """Upstream's is small beside them, and forgetting it passes its check."""
    changes = {
        "forgotten": lambda case, arguments: {"bias": None},
        "shifted": replaced("bias", lambda bias: bias.roll(1)),
        "twice": replaced("bias", lambda bias: bias * 2),
        "negative": replaced("bias", torch.neg),
        "that of the first column": replaced("bias", lambda bias: bias[:1].expand_as(bias).contiguous()),
    }
    assert_all_caught(MM, changes, f"--m 5 --n 48 --k {k} --bias")


# ---- The problem ----


def test_tensors():
    _, problem = problem_of(BMM, BATCHED)
    assert {name: (tuple(t.shape), t.stride()) for name, t in problem.tensors.items()} == {
        "a": ((3, 5, 192), (960, 192, 1)),
        "b": ((3, 192, 48), (9216, 1, 192)),
    }
    _, problem = problem_of(MM, f"{CASE} --bias")
    assert {name: (tuple(t.shape), t.stride()) for name, t in problem.tensors.items()} == {
        "a": ((5, 192), (192, 1)),
        "b": ((192, 48), (1, 192)),
        "bias": ((48,), (1,)),
    }
    assert all(tensor.dtype is torch.bfloat16 for tensor in problem.tensors.values())
    assert float(problem["bias"].float().std()) == pytest.approx(192**0.5, rel=0.3)


@pytest.mark.parametrize("flags", ["", "--bias"])
def test_truth_of_mm(flags):
    _, problem = problem_of(MM, f"{CASE} {flags}")
    expected = problem["a"].double() @ problem["b"].double()
    expected += problem["bias"].double() if flags else 0
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)


def test_truth_of_bmm():
    _, problem = problem_of(BMM, BATCHED)
    expected = problem["a"].double() @ problem["b"].double()
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)


def test_work():
    """By the documented formulas; the bias counts."""
    assert problem_of(MM, CASE)[1].work == Work(2 * 5 * 48 * 192, 2 * (5 * 192 + 48 * 192 + 5 * 48))
    assert problem_of(MM, f"{CASE} --bias --out_dtype float32")[1].work == Work(
        2 * 5 * 48 * 192 + 5 * 48, 2 * (5 * 192 + 48 * 192) + 4 * 5 * 48 + 2 * 48
    )
    assert problem_of(BMM, BATCHED)[1].work == Work(3 * 2 * 5 * 48 * 192, 3 * 2 * (5 * 192 + 48 * 192 + 5 * 48))


# ---- Limits ----


@pytest.mark.parametrize(("name", "backend"), [*((MM, b) for b in OF_MM), *((BMM, b) for b in OF_BMM)])
def test_without_a_gpu_flashinfer_says_why(name, backend):
    assert_runs_nowhere_without_gpu(name, backend, "--m 8 --n 64 --k 64")


@pytest.mark.parametrize(
    ("name", "backend", "flags", "says"),
    [
        (MM, "cudnn", "--enable_pdl", "no programmatic dependent launch"),
        (MM, "cublaslt", "--enable_pdl", "no programmatic dependent launch"),
        (MM, "cublaslt", "--bias --out_dtype float32", "a bfloat16 output only"),
        (MM, "cutlass", "--enable_pdl", "no programmatic dependent launch"),
        (MM, "cutlass", "--bias", "adds no bias"),
        (MM, "cutile", "--enable_pdl", "no programmatic dependent launch"),
        (MM, "cutile", "--bias", "adds no bias"),
        (MM, "tgv", "--out_dtype float16", "writes bfloat16 only"),
        (MM, "tinygemm", "--out_dtype float16", "writes bfloat16 only"),
        (MM, "tinygemm", "--n 24", "n must be divisible by 16"),
        (MM, "tinygemm", "--k 96", "k must be divisible by 64"),
        (MM, "cute-dsl", "--out_dtype float32", "writes bfloat16 only"),
        (BMM, "tgv", "--out_dtype float16", "writes bfloat16 only"),
        (BMM, "cake", "--k 128", "k of 64, 256 or 1024"),
        (BMM, "cake", "--n 12 --k 64", "n must be divisible by 8"),
    ],
)
def test_limits(name, backend, flags, says):
    assert_refused(name, backend, f"{CASE} {flags}", says)


@pytest.mark.parametrize("name", [MM, BMM])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 1 --n 8", "missing required flag --k"),
        (f"{CASE} --input_dtype fp8_e4m3", "--input_dtype: 'fp8_e4m3' is not one of bfloat16"),
        (f"{CASE} --out_dtype fp8_e4m3", "--out_dtype: 'fp8_e4m3' is not one of bfloat16, float16, float32"),
        (f"{CASE} --backends cublas", "--backends of"),
    ],
)
def test_bad_input(name, flags, says):
    with pytest.raises(InvalidInput) as refusal:
        case_of(name, flags)
    assert says in str(refusal.value)


@pytest.mark.parametrize("name", [MM, BMM])
def test_what_cannot_fit_is_refused_with_both_byte_counts(name):
    case = case_of(name, "--m 65536 --n 65536 --k 65536")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(65536 * 65536 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)


# ---- cuTile's compiler ----


@pytest.mark.parametrize(
    ("packages", "works", "says"),
    [
        ((), True, "cuda.tile is not installed; install it with: pip install cuda-tile"),
        (
            ("cuda.tile", "flashinfer"),
            False,
            "cuda.tile's compiler, tileiras, is not installed or does not know this GPU",
        ),
        (("cuda.tile", "flashinfer"), True, None),
        (("cuda.tile",), False, None),
    ],
)
def test_cutile_needs_a_compiler_that_knows_the_gpu(monkeypatch, packages, works, says):
    """Without flashinfer its own requirement says what is missing."""
    asked = []
    monkeypatch.setattr(backends, "is_installed", lambda module: module in packages)
    monkeypatch.setattr("flashinfer.cutile.is_cuda_tile_available", lambda device: asked.append(device) or works)
    assert backends.cutile_installed.unmet(Machine("cuda:1", "a GPU", (9, 0)), None) == says
    assert asked == (["cuda:1"] if len(packages) == 2 else [])
    assert backends.cutile_installed.unmet(Machine("cpu", "", None), None) == (None if packages else says)
