"""mm_mxfp8 and bmm_mxfp8: their calls, their checks, and kernels that these must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats import mxfp8
from flashinfer_perf.formats.scale_layout import restore
from flashinfer_perf.formats.shuffle import unshuffle_rows
from flashinfer_perf.routines.gemm import reference
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
from tests.routines.harness import assert_caught, assert_passes, case_of, launch_of, make_problem, problem_of, run

MM, BMM = "mm_mxfp8", "bmm_mxfp8"
CASE = "--m 5 --n 128 --k 256"
BATCHED = f"{CASE} --batch_size 3"
UNSHUFFLED = ["cutlass", "cudnn", "cute-dsl", "cutedsl_low_latency", "b12x", "auto"]
OF_BMM = ["cudnn", "cutlass", "auto"]
BOTH = pytest.mark.parametrize(("name", "case"), [(MM, CASE), (BMM, BATCHED)])


# ---- Calls of FlashInfer ----


@covers(MM, *UNSHUFFLED)
@pytest.mark.parametrize("backend", UNSHUFFLED)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_mm_calls_flashinfer_as_it_declares(backend, out_dtype):
    with contract("flashinfer.gemm.mm_mxfp8", given_out) as kernel:
        launch, problem = launch_of(MM, backend, f"{CASE} --out_dtype {str(out_dtype).partition('.')[2]}")
        returned = launch()
    call = kernel.calls[-1]
    assert call["a"] is problem["a"]
    assert (call["b"].shape, call["b"].stride()) == ((256, 128), (1, 256))
    assert call["b"].data_ptr() == problem["b"].data_ptr()
    assert call["a_descale"] is problem["a_scale"]
    assert call["b_descale"] is problem["b_scale"]
    assert call["a_descale"].shape == call["b_descale"].shape == (128 * 8,)
    assert call["use_8x4_sf_layout"] is False
    assert call["out"].dtype is call["out_dtype"] is out_dtype
    assert call["out"].shape == (5, 128)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}


@covers(MM, "trtllm")
@pytest.mark.parametrize("layout", ["8x4", "128x4"])
def test_trtllm_gets_shuffled_weights_and_the_asked_layout_of_as_scales(layout):
    flag = "--use_128x4_sf_layout" if layout == "128x4" else ""
    with contract("flashinfer.gemm.mm_mxfp8", given_out) as kernel:
        launch, problem = launch_of(MM, "trtllm", f"{CASE} {flag}")
        launch()
    call = kernel.call
    assert call["use_8x4_sf_layout"] is (layout == "8x4")
    assert call["a_descale"].shape == ((8 if layout == "8x4" else 128) * 8,)
    a_scale = restore(problem["a_scale"], "128x4", (5, 8))
    assert torch.equal(restore(call["a_descale"], layout, (5, 8)), a_scale)
    assert torch.equal(unshuffle_rows(call["b"].T.view(torch.uint8)), problem["b"].view(torch.uint8))
    b_scale = restore(problem["b_scale"], "128x4", (128, 8))
    assert torch.equal(unshuffle_rows(restore(call["b_descale"], "128x4", (128, 8))), b_scale)


@covers(BMM, *OF_BMM)
@pytest.mark.parametrize("backend", OF_BMM)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_bmm_calls_flashinfer_as_it_declares(backend, out_dtype):
    flags = f"--batch_size 2 --m 128 --n 256 --k 128 --out_dtype {str(out_dtype).partition('.')[2]}"
    with contract("flashinfer.gemm.bmm_mxfp8", given_out) as kernel:
        launch, problem = launch_of(BMM, backend, flags)
        returned = launch()
    call = kernel.calls[-1]
    for parameter, name in (("A", "a"), ("B", "b"), ("A_scale", "a_scale"), ("B_scale", "b_scale")):
        assert call[parameter] is problem[name]
    assert (call["A"].shape, call["A"].stride()) == ((2, 128, 128), (128 * 128, 128, 1))
    assert (call["B"].shape, call["B"].stride()) == ((2, 128, 256), (256 * 128, 1, 128))
    assert call["A_scale"].shape == (2 * 128 * 4,)
    assert call["B_scale"].shape == (2 * 256 * 4,)
    assert call["out"].dtype is call["dtype"] is out_dtype
    assert call["out"].shape == (2, 128, 256)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}


# ---- Right kernels pass, wrong ones are caught ----


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sizes", ["--m 1 --n 1 --k 32", CASE, "--m 130 --n 24 --k 96", "--m 16 --n 128 --k 7168"])
@pytest.mark.parametrize(("name", "more"), [(MM, ""), (BMM, "--batch_size 2")])
def test_torch_passes(name, sizes, out_dtype, more):
    assert_passes(run(name, f"{sizes} --out_dtype {out_dtype} {more}", "torch"))


@BOTH
def test_what_is_wrong_with_an_output_is_caught(name, case):
    assert_outputs_are_judged(name, case)
    assert_outputs_are_judged(name, f"{case} --k 4096")


@BOTH
def test_wrong_arguments_are_caught(name, case):
    changes = {
        "the neighbouring block's scales of A": replaced("a_scale", lambda s: s.roll(1)),
        "the neighbouring block's scales of B": replaced("b_scale", lambda s: s.roll(1)),
        "A's scales row by row": replaced("a_scale", lambda s: restored(s)),
        "one scale of B doubled": replaced("b_scale", one_doubled),
        "no scales of A": replaced("a_scale", lambda s: torch.full_like(s, 127)),
        "all scales twice as large": replaced("a_scale", lambda s: s + 1),
        "half of k": short_by(128),
        "the last block": short_by(32),
        "rows of A shifted": replaced("a", lambda a: a.roll(1, -2)),
        "A read as e5m2": replaced("a", lambda a: a.view(torch.float8_e5m2)),
        "signs forgotten": replaced("a", lambda a: (a.view(torch.uint8) & 0x7F).view(a.dtype)),
    }
    assert_all_caught(name, changes, case)


def restored(scales: torch.Tensor) -> torch.Tensor:
    return restore(scales, "128x4", (128, scales.numel() // 128)).flatten()


def one_doubled(scales: torch.Tensor) -> torch.Tensor:
    scales[0] += 1
    return scales


def test_batch_entries_that_are_mixed_up_are_caught():
    changes = {
        "A in another order": replaced("a", lambda a: a.flip(0)),
        "B in another order": replaced("b", lambda b: b.flip(0)),
        "scales of the first entry for all": replaced("b_scale", first_entrys),
    }
    assert_all_caught(BMM, changes, BATCHED)


def first_entrys(scales: torch.Tensor) -> torch.Tensor:
    """128 rows to an entry."""
    return scales[: scales.numel() // 3].repeat(3)


# ---- The problem ----


@pytest.mark.parametrize("name", ["mm_mxfp8", "bmm_mxfp8"])
def test_the_truth_does_not_decode_as_the_torch_backend_does(monkeypatch, name):
    """A mistake that both made would be none."""
    decode = mxfp8.decode
    monkeypatch.setattr(mxfp8, "decode", lambda quantised: 1.05 * decode(quantised))
    assert_caught(run(name, "--m 5 --n 64 --k 128", "torch"))


def test_rows_are_looked_up_a_few_at_a_time(monkeypatch):
    _, problem = problem_of("mm_mxfp8", "--m 13 --n 40 --k 128")
    whole = problem.truth()["out"]
    monkeypatch.setattr(reference, "LOOKED_UP_AT_A_TIME", 5 * 128)
    assert torch.equal(problem.truth()["out"], whole)


def test_truth_of_mm():
    _, problem = problem_of(MM, CASE)
    a = mxfp8.decode(mxfp8.Mxfp8(problem["a"], restore(problem["a_scale"], "128x4", (5, 8))))
    b = mxfp8.decode(mxfp8.Mxfp8(problem["b"], restore(problem["b_scale"], "128x4", (128, 8))))
    expected = a.double() @ b.double().T
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)
    assert float(expected.std()) == pytest.approx(16, rel=0.15)


def test_truth_of_bmm():
    """Scales of all rows together, as the quantiser gives them: entries of 5 rows share tiles of 128."""
    _, problem = problem_of(BMM, BATCHED)
    a_scale = restore(problem["a_scale"], "128x4", (15, 8))
    b_scale = restore(problem["b_scale"], "128x4", (384, 8))
    truth = problem.truth()["out"]
    for entry in range(3):
        a = mxfp8.decode(mxfp8.Mxfp8(problem["a"][entry], a_scale[5 * entry : 5 * entry + 5]))
        b = mxfp8.decode(mxfp8.Mxfp8(problem["b"][entry].T, b_scale[128 * entry : 128 * entry + 128]))
        assert torch.allclose(truth[entry].double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-4)


@BOTH
def test_large_operands_are_made_in_parts(name, case, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.routines.gemm.inputs.AT_A_TIME", 3 * 256)
    monkeypatch.setattr("flashinfer_perf.routines.gemm.reference.AT_A_TIME", 5 * 256)
    assert_passes(run(name, case, "torch"))


def test_work():
    assert problem_of(MM, CASE)[1].work == Work(2 * 5 * 128 * 256, 5 * 256 + 128 * 256 + 2 * 5 * 128)
    assert problem_of(BMM, BATCHED)[1].work == Work(3 * 2 * 5 * 128 * 256, 3 * (5 * 256 + 128 * 256 + 2 * 5 * 128))


def test_shown():
    _, problem = problem_of(BMM, BATCHED)
    assert [line.text for line in problem.shown] == [
        "input_mxfp8.shape = torch.Size([3, 5, 256])",
        "input_mxfp8.dtype = torch.float8_e4m3fn",
        "mat2_mxfp8.shape = torch.Size([3, 256, 128])",
        "mat2_mxfp8.dtype = torch.float8_e4m3fn",
        "input_scale.shape = torch.Size([1024])",
        "input_scale.dtype = torch.uint8",
        "mat2_scale.shape = torch.Size([3072])",
        "mat2_scale.dtype = torch.uint8",
    ]


# ---- Limits ----


@pytest.mark.parametrize(
    ("name", "backend"), [*((MM, b) for b in ["trtllm", *UNSHUFFLED]), *((BMM, b) for b in OF_BMM)]
)
def test_without_a_gpu_flashinfer_says_why(name, backend):
    assert_runs_nowhere_without_gpu(name, backend, CASE)


@pytest.mark.parametrize(
    ("name", "backend", "flags", "says"),
    [
        *[(MM, b, "--n 96", "an n and a k of 128 or more") for b in ["trtllm", *UNSHUFFLED]],
        *[(BMM, b, "--k 96", "an n and a k of 128 or more") for b in OF_BMM],
        *[(BMM, b, "--batch_size 2", "m and n must be divisible by 128") for b in OF_BMM],
        (MM, "trtllm", "--out_dtype float16", "writes bfloat16 only"),
        (MM, "trtllm", "--k 384", "k must be divisible by 256"),
        (MM, "trtllm", "--n 192", "n must be divisible by 128"),
        (MM, "cutlass", "--n 136", "n must be divisible by 32"),
        (BMM, "cutlass", "--n 136", "n must be divisible by 32"),
        (MM, "cutedsl_low_latency", "--m 9", "8 rows at most"),
        (MM, "cutedsl_low_latency", "--k 160", "k must be divisible by 128"),
        (MM, "b12x", "--k 160", "k must be divisible by 128"),
    ],
)
def test_limits(name, backend, flags, says):
    assert_refused(name, backend, f"{CASE} {flags}", says)


@pytest.mark.parametrize("name", [MM, BMM])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 1 --n 8", "missing required flag --k"),
        ("--m 1 --n 8 --k 48", "k (48) must be divisible by the block, 32"),
        (f"{CASE} --out_dtype float32", "--out_dtype: 'float32' is not one of bfloat16, float16"),
    ],
)
def test_bad_input(name, flags, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(name, flags))
    assert says in str(refusal.value)


@pytest.mark.parametrize("name", [MM, BMM])
def test_what_cannot_fit_is_refused_with_both_byte_counts(name):
    case = case_of(name, "--m 65536 --n 65536 --k 65536")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(65536 * 65536 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)
