"""bmm_fp8: its calls, its check, and kernels that this must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.work import Work
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
    scaled,
    short_by,
)
from tests.routines.harness import assert_caught, assert_passes, case_of, launch_of, problem_of, run, run_broken
from tests.routines.norm.kernels import wrong

NAME = "bmm_fp8"
CASE = "--batch_size 3 --m 5 --n 24 --k 160"
LIBRARY = ["cudnn", "cublas", "cutlass", "cute-dsl", "auto"]


@covers(NAME, *LIBRARY)
@pytest.mark.parametrize("backend", LIBRARY)
@pytest.mark.parametrize("formats", ["", "--input_dtype fp8_e5m2 --out_dtype float16"])
def test_calls_flashinfer_as_it_declares(backend, formats):
    with contract("flashinfer.gemm.bmm_fp8", given_out) as kernel:
        launch, problem = launch_of(NAME, backend, f"{CASE} {formats}")
        returned = launch()
    call = kernel.calls[-1]
    assert set(call) == {"A", "B", "A_scale", "B_scale", "dtype", "out", "backend"}
    for parameter, name in (("A", "a"), ("B", "b"), ("A_scale", "a_scale"), ("B_scale", "b_scale")):
        assert call[parameter] is problem[name]
    assert call["backend"] == backend
    assert call["dtype"] is call["out"].dtype is (torch.float16 if formats else torch.bfloat16)
    assert call["out"].shape == (3, 5, 24)
    assert launch.outputs(returned) == {"out": call["out"]}


@pytest.mark.parametrize("input_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("mat2_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "sizes", [CASE, "--m 1 --n 1 --k 1", "--m 1 --n 1024 --k 7168", "--batch_size 7 --m 33 --n 3 --k 5"]
)
def test_torch_passes(input_dtype, mat2_dtype, out_dtype, sizes):
    flags = f"{sizes} --input_dtype {input_dtype} --mat2_dtype {mat2_dtype} --out_dtype {out_dtype}"
    assert_passes(run(NAME, flags, "torch"))


@pytest.mark.parametrize("formats", ["", "--input_dtype fp8_e5m2", "--mat2_dtype fp8_e5m2"])
def test_pytorchs_scaled_product_passes(formats, monkeypatch):
    """PyTorch has one for the CPU, too."""
    monkeypatch.setattr("flashinfer_perf.routines.gemm.eager.has_fp8_units", lambda device: True)
    record = run(NAME, f"--batch_size 3 --m 5 --n 32 --k 160 {formats}", "torch")
    assert_passes(record)
    assert record.resolved_backend == "torch._scaled_mm"


@pytest.mark.parametrize(
    "flags",
    ["--m 5 --n 24 --k 160", "--m 5 --n 32 --k 24", "--m 5 --n 32 --k 32 --input_dtype fp8_e5m2 --mat2_dtype fp8_e5m2"],
)
def test_what_pytorchs_scaled_product_does_not_take_is_dequantised(flags, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.routines.gemm.eager.has_fp8_units", lambda device: True)
    record = run(NAME, flags, "torch")
    assert_passes(record)
    assert record.resolved_backend == "torch"


@pytest.mark.parametrize("flags", [CASE, "--m 16 --n 128 --k 4096"])
def test_what_is_wrong_with_an_output_is_caught(flags):
    assert_outputs_are_judged(NAME, flags)


def test_wrong_arguments_are_caught():
    changes = {
        "A's scale forgotten": replaced("a_scale", torch.ones_like),
        "B's scale forgotten": replaced("b_scale", torch.ones_like),
        "A's scale squared": replaced("a_scale", lambda scale: scale * scale),
        "the reciprocal of A's scale": replaced("a_scale", torch.reciprocal),
        "32 products short": short_by(32),
        "one product short": short_by(1),
        "batch entries of A swapped": replaced("a", lambda a: a.flip(0)),
        "batch entries of B swapped": replaced("b", lambda b: b.flip(0)),
        "the first batch entry for all": replaced("a", lambda a: a[:1].expand_as(a)),
        "B not transposed": replaced("b", lambda b: b.transpose(1, 2).reshape(b.shape)),
        "A read as e5m2": replaced("a", lambda a: a.view(torch.float8_e5m2)),
    }
    assert_all_caught(NAME, changes, CASE)


@pytest.mark.parametrize("k", [64, 1024, 7168])
def test_the_scale_of_everything_is_checked_to_three_percent(k):
    """What a cosine cannot see."""
    flags = f"--m 16 --n 128 --k {k}"
    for factor in (0.97, 1.03, 2.0):
        assert_caught(run_broken(NAME, wrong(NAME, after=scaled(factor)), flags))
    assert_passes(run_broken_timed(flags, 1.0))


def run_broken_timed(flags, factor):
    return run_broken(NAME, wrong(NAME, after=scaled(factor)), flags)


# ---- The problem ----


def test_tensors():
    _, problem = problem_of(NAME, f"{CASE} --mat2_dtype fp8_e5m2")
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in problem.tensors.items()}
    assert shapes == {
        "a": ((3, 5, 160), torch.float8_e4m3fn),
        "b": ((3, 160, 24), torch.float8_e5m2),
        "a_scale": ((), torch.float32),
        "b_scale": ((), torch.float32),
    }
    assert problem["a"].is_contiguous()
    assert problem["b"].stride() == (24 * 160, 1, 160)


def test_operands_are_standard_normal():
    _, problem = problem_of(NAME, "--batch_size 2 --m 64 --n 64 --k 512")
    for name in "ab":
        values = problem[name].float() * problem[f"{name}_scale"]
        assert float(values.mean()) == pytest.approx(0, abs=0.02)
        assert float(values.std()) == pytest.approx(1, abs=0.02)


def test_truth_by_hand():
    _, problem = problem_of(NAME, "--batch_size 2 --m 2 --n 3 --k 4")
    a, b = problem["a"].double(), problem["b"].double()
    scale = float(problem["a_scale"]) * float(problem["b_scale"])
    out = problem.truth()["out"]
    for batch, row, column in [(0, 0, 0), (1, 1, 2), (0, 1, 1)]:
        expected = sum(float(a[batch, row, i]) * float(b[batch, i, column]) for i in range(4)) * scale
        assert float(out[batch, row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_work_counts_the_batch_in_flops_and_in_bytes():
    """Upstream's bytes do not."""
    _, problem = problem_of(NAME, f"{CASE} --input_dtype fp8_e5m2")
    assert problem.work == Work(flops=3 * 2 * 5 * 24 * 160, bytes=3 * (5 * 160 + 24 * 160 + 2 * 5 * 24))


def test_shown():
    """The documented example's lines, with its shapes."""
    _, problem = problem_of(NAME, "--batch_size 2 --m 1 --n 32 --k 48")
    texts = [line.text for line in problem.shown]
    assert texts[:4] == [
        "input_fp8.shape = torch.Size([2, 1, 48])",
        "input_fp8.dtype = torch.float8_e4m3fn",
        "mat2_fp8.shape = torch.Size([2, 48, 32])",
        "mat2_fp8.dtype = torch.float8_e4m3fn",
    ]
    assert texts[4].startswith("input_inv_s = tensor(0.00")
    assert texts[5] == "input_inv_s.dtype = torch.float32"
    assert texts[6].startswith("mat2_inv_s = tensor(0.00")
    assert texts[7:] == ["mat2_inv_s.dtype = torch.float32"]


# ---- Limits ----


@pytest.mark.parametrize("backend", LIBRARY)
def test_without_a_gpu_flashinfer_says_why(backend):
    assert_runs_nowhere_without_gpu(NAME, backend, "--m 16 --n 16 --k 16")


E5M2 = "--input_dtype fp8_e5m2 --mat2_dtype fp8_e5m2"


@pytest.mark.parametrize(
    ("backend", "flags", "says"),
    [
        ("cublas", f"{CASE} {E5M2}", "no product of e5m2 with e5m2"),
        ("cublas", "--m 1 --n 8 --k 24", "k divisible by 16"),
        ("cublas", "--m 1 --n 12 --k 32", "n by 8"),
        ("cutlass", f"{CASE} --mat2_dtype fp8_e5m2", "e4m3 operands only"),
        ("cute-dsl", f"{CASE}", "divisible by 16"),
        ("cute-dsl", "--m 16 --n 16 --k 16 --input_dtype fp8_e5m2", "the same format"),
    ],
)
def test_limits(backend, flags, says):
    assert_refused(NAME, backend, flags, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 1 --n 8", "missing required flag --k"),
        ("--m 0 --n 8 --k 8", "--m must be at least 1"),
        (f"{CASE} --input_dtype fp8", "--input_dtype: 'fp8' is not one of fp8_e4m3, fp8_e5m2"),
        (f"{CASE} --mat2_dtype bfloat16", "--mat2_dtype: 'bfloat16' is not one of fp8_e4m3, fp8_e5m2"),
        (f"{CASE} --out_dtype float32", "--out_dtype: 'float32' is not one of bfloat16, float16"),
        (f"{CASE} --backends cudn", "Did you mean 'cudnn'?"),
    ],
)
def test_bad_input(flags, says):
    with pytest.raises(InvalidInput) as refusal:
        case_of(NAME, flags)
    assert says in str(refusal.value)


def test_what_cannot_fit_is_refused_with_both_byte_counts():
    case = case_of(NAME, "--batch_size 4096 --m 16384 --n 16384 --k 16384")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(4096 * 16384 * 16384 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)
