"""mm_fp4: its calls, its check, kernels that this must find out, and what its flags leave of its backends."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Record, Status
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats import mxfp4, nvfp4
from flashinfer_perf.formats.scale_layout import restore
from flashinfer_perf.formats.shuffle import unshuffle_rows
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.fakes import texts_in
from tests.routines.gemm.kernels import (
    assert_all_caught,
    assert_outputs_are_judged,
    assert_refused,
    assert_runs_nowhere_without_gpu,
    given_out,
    reason_on,
    replaced,
    short_by,
)
from tests.routines.harness import assert_caught, assert_passes, case_of, launch_of, make_problem, problem_of, run

NAME = "mm_fp4"
CASE = "--m 5 --n 128 --k 256"
NV = "--use_nvfp4 --use_128x4_sf_layout"
FORMATS = ["--use_nvfp4", ""]
LAYOUTS = ["--use_128x4_sf_layout", ""]
UNSHUFFLED = ["cudnn", "cutlass", "cute-dsl", "cutedsl_low_latency", "b12x", "auto"]
LIBRARY = ["trtllm", *UNSHUFFLED]
BLACKWELL = Machine("cpu", "NVIDIA B200", (10, 0))

each_format = pytest.mark.parametrize("format", FORMATS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


# ---- Calls of FlashInfer ----


@covers(NAME, *UNSHUFFLED)
@pytest.mark.parametrize("backend", UNSHUFFLED)
@each_format
@pytest.mark.parametrize("more", ["", "--enable_pdl --out_dtype float16"])
def test_calls_flashinfer_as_it_declares(backend, format, more):
    with contract("flashinfer.gemm.mm_fp4", given_out) as kernel:
        launch, problem = launch_of(NAME, backend, f"{CASE} {format} --use_128x4_sf_layout {more}")
        returned = launch()
    call = kernel.calls[-1]
    block = 16 if format else 32
    assert call["a"] is problem["a"]
    assert call["a"].shape == (5, 128)
    assert (call["b"].shape, call["b"].stride()) == ((128, 128), (1, 128))
    assert call["b"].data_ptr() == problem["b"].data_ptr()
    assert call["a_descale"] is problem["a_scale"]
    assert call["a_descale"].shape == (128, 256 // block)
    assert (call["b_descale"].shape, call["b_descale"].stride()) == ((256 // block, 128), (1, 256 // block))
    assert call["b_descale"].data_ptr() == problem["b_scale"].data_ptr()
    assert call["alpha"] is (problem["alpha"] if format else None)
    assert (call["block_size"], call["use_nvfp4"], call["use_8x4_sf_layout"]) == (block, bool(format), False)
    assert call["enable_pdl"] is ("--enable_pdl" in more)
    assert call["out"].dtype is call["out_dtype"] is (torch.float16 if more else torch.bfloat16)
    assert call["out"].shape == (5, 128)
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}


@covers(NAME, "trtllm")
@each_layout
def test_trtllm_gets_shuffled_weights_and_the_asked_layout_of_as_scales(layout):
    with contract("flashinfer.gemm.mm_fp4", given_out) as kernel:
        launch, problem = launch_of(NAME, "trtllm", f"{CASE} --use_nvfp4 {layout}")
        launch()
    call = kernel.call
    assert call["use_8x4_sf_layout"] is not bool(layout)
    assert call["a_descale"].shape == ((128, 16) if layout else (8, 16))
    assert torch.equal(unshuffle_rows(call["b"].T), problem["b"])
    linear = restore(call["b_descale"].T, "128x4", (128, 16))
    assert torch.equal(unshuffle_rows(linear), restore(problem["b_scale"], "128x4", (128, 16)))
    assert not torch.equal(call["b"].T, problem["b"])


def test_the_shuffle_is_the_librarys():
    from flashinfer.utils import get_shuffle_matrix_a_row_indices

    with contract("flashinfer.gemm.mm_fp4", given_out) as kernel:
        launch, problem = launch_of(NAME, "trtllm", f"{CASE} {NV}")
        launch()
    order = get_shuffle_matrix_a_row_indices(problem["b"], 128)
    assert torch.equal(kernel.call["b"].T, problem["b"][order])


# ---- Right kernels pass, wrong ones are caught ----


@each_format
@each_layout
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sizes", ["--m 1 --n 1 --k 32", CASE, "--m 130 --n 24 --k 96", "--m 16 --n 128 --k 7168"])
def test_torch_passes(format, layout, out_dtype, sizes):
    assert_passes(run(NAME, f"{sizes} {format} {layout} --out_dtype {out_dtype}", "torch"))


@each_format
def test_what_is_wrong_with_an_output_is_caught(format):
    assert_outputs_are_judged(NAME, f"{CASE} {format}")
    assert_outputs_are_judged(NAME, f"{CASE} {format} --k 4096")


@each_format
@each_layout
def test_wrong_arguments_are_caught(format, layout):
    other = "8x4" if layout else "128x4"
    changes = {
        "the neighbouring block's scales of A": replaced("a_scale", lambda s: s.roll(1, -1)),
        "the neighbouring block's scales of B": replaced("b_scale", lambda s: s.roll(1, -1)),
        "A's scales read row by row": lambda case, arguments: {
            "a_scale": arguments["a_scale"].flatten()[: 5 * arguments["a_scale"].shape[1]],
            "layout": "linear",
        },
        "half of k": short_by(64),
        "the last block": short_by(16),
        "nibbles swapped": replaced("a", lambda a: (a >> 4) | (a << 4)),
        "one block's scale of B doubled": replaced("b_scale", lambda s: changed_at(s, 0)),
        "rows of A shifted": replaced("a", lambda a: a.roll(1, 0)),
        "rows of B shifted": replaced("b", lambda b: b.roll(1, 0)),
        "signs forgotten": replaced("a", lambda a: a & 0x77),
    }
    if layout:  # an 8x4 buffer is too small to be read as 128x4
        changes["A's scales read in the other layout"] = lambda case, arguments: {
            "a_scale": arguments["a_scale"][:8],
            "layout": other,
        }
    assert_all_caught(NAME, changes, f"{CASE} {format} {layout}")


def changed_at(scales: torch.Tensor, place: int) -> torch.Tensor:
    scales.view(-1)[place] += 1 if int(scales.max()) > 0x7E else 8
    return scales


def test_a_wrong_alpha_is_caught():
    """Upstream gives some backends none, and its cosine does not see it."""
    changes = {
        "forgotten": replaced("alpha", torch.ones_like),
        "its reciprocal": replaced("alpha", torch.reciprocal),
        "of one operand": replaced("alpha", torch.sqrt),
        "three percent more": replaced("alpha", lambda alpha: alpha * 1.03),
        "three percent less": replaced("alpha", lambda alpha: alpha * 0.97),
    }
    assert_all_caught(NAME, changes, f"{CASE} {NV}")


# ---- The problem ----


@each_format
@each_layout
def test_tensors(format, layout):
    _, problem = problem_of(NAME, f"--m 5 --n 24 --k 96 {format} {layout}")
    columns = 8 if format else 4  # 6 and 3 blocks, padded to fours
    assert {name: tuple(tensor.shape) for name, tensor in problem.tensors.items()} == {
        "a": (5, 48),
        "b": (24, 48),
        "a_scale": (128 if layout else 8, columns),
        "b_scale": (128, columns),
        "alpha": (),
    }
    assert problem["alpha"].dtype is torch.float32
    assert all(problem[name].dtype is torch.uint8 for name in ("a", "b", "a_scale", "b_scale"))


@pytest.mark.parametrize(("format", "flags"), [(nvfp4, "--use_nvfp4"), (mxfp4, "")])
def test_the_truth_does_not_decode_as_the_torch_backend_does(monkeypatch, format, flags):
    """A mistake that both made would be none."""
    decode = format.decode
    monkeypatch.setattr(format, "decode", lambda quantised: 1.05 * decode(quantised))
    assert_caught(run("mm_fp4", f"--m 5 --n 64 --k 128 {flags}", "torch"))


@each_layout
def test_truth_in_nvfp4(layout):
    _, problem = problem_of(NAME, f"{CASE} --use_nvfp4 {layout}")
    a_scale = restore(problem["a_scale"], "128x4" if layout else "8x4", (5, 16))
    b_scale = restore(problem["b_scale"], "128x4", (128, 16))
    a = nvfp4.decode(nvfp4.Nvfp4(problem["a"], a_scale))
    b = nvfp4.decode(nvfp4.Nvfp4(problem["b"], b_scale))
    expected = a.double() @ b.double().T * problem["alpha"].double()
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)
    assert float(expected.std()) == pytest.approx(16, rel=0.15)
    assert int(a_scale.max()) == int(b_scale.max()) == 0x7E


@each_layout
def test_truth_in_mxfp4(layout):
    _, problem = problem_of(NAME, f"{CASE} {layout}")
    a_scale = restore(problem["a_scale"], "128x4" if layout else "8x4", (5, 8))
    b_scale = restore(problem["b_scale"], "128x4", (128, 8))
    a = mxfp4.decode(mxfp4.Mxfp4(problem["a"], a_scale))
    b = mxfp4.decode(mxfp4.Mxfp4(problem["b"], b_scale))
    assert float(problem["alpha"]) == 1
    expected = a.double() @ b.double().T
    assert torch.allclose(problem.truth()["out"].double(), expected, rtol=1e-5, atol=1e-4)
    assert float(expected.std()) == pytest.approx(16, rel=0.15)


@each_format
def test_large_operands_are_made_in_parts(format, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.routines.gemm.inputs.AT_A_TIME", 3 * 256)
    monkeypatch.setattr("flashinfer_perf.routines.gemm.reference.AT_A_TIME", 5 * 256)
    assert_passes(run(NAME, f"{CASE} {format}", "torch"))


def test_work():
    """By the documented formula: half a byte to an element, no scales."""
    assert problem_of(NAME, f"{CASE} {NV}")[1].work == Work(2 * 5 * 128 * 256, (5 + 128) * 128 + 2 * 5 * 128)


def test_shown():
    _, problem = problem_of(NAME, f"{CASE} {NV}")
    assert [line.text for line in problem.shown] == [
        "input_fp4.shape = torch.Size([5, 128])",
        "input_fp4.dtype = torch.uint8",
        "mat2_fp4.shape = torch.Size([128, 128])",
        "mat2_fp4.dtype = torch.uint8",
    ]


# ---- Limits ----


@pytest.mark.parametrize("backend", LIBRARY)
def test_without_a_gpu_flashinfer_says_why(backend):
    assert_runs_nowhere_without_gpu(NAME, backend, f"{CASE} {NV}")


@pytest.mark.parametrize(
    ("backend", "flags", "says"),
    [
        *[(b, "--use_nvfp4", "add --use_128x4_sf_layout") for b in UNSHUFFLED],
        ("cutlass", "--use_128x4_sf_layout", "add --use_nvfp4"),
        ("trtllm", "", "add --use_nvfp4"),
        ("trtllm", f"{NV} --out_dtype float16", "writes bfloat16 only"),
        ("trtllm", f"{NV} --n 96", "n must be divisible by 128"),
        ("trtllm", f"{NV} --k 96", "k must be divisible by 64"),
        ("cutlass", f"{NV} --n 48", "n must be divisible by 32"),
        ("cutlass", f"{NV} --k 48", "k must be divisible by 32"),
        ("cute-dsl", f"{NV} --n 12", "n must be divisible by 8"),
        ("cutedsl_low_latency", f"{NV} --m 9", "8 rows at most"),
        ("cutedsl_low_latency", f"{NV} --k 96", "k divisible by 64"),
        ("cutedsl_low_latency", "--use_128x4_sf_layout --k 192", "by 128 without"),
        ("b12x", f"{NV} --k 48", "k must be divisible by 32"),
    ],
)
def test_limits(backend, flags, says):
    assert_refused(NAME, backend, f"{CASE} {flags}", says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--use_128x4_sf_layout", "add --use_nvfp4"),
        (f"{NV} --out_dtype float16", "writes bfloat16 only"),
        (f"{NV} --n 96", "n must be divisible by 64"),
        (f"{NV} --k 96", "k must be divisible by 64"),
    ],
)
def test_the_dsls_kernels_for_12_have_limits_of_their_own(flags, says, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert says in reason_on(Machine("cuda", "", (12, 0)), NAME, "cute-dsl", f"{CASE} {flags}")
    assert says not in reason_on(BLACKWELL, NAME, "cute-dsl", f"{CASE} {flags}")


@pytest.mark.parametrize(
    ("flags", "cuda", "runs"),
    [(NV, "12.9", True), (NV, "12.8", False), ("--use_128x4_sf_layout", "12.9", False)],
)
def test_b12x_needs_a_newer_cuda_for_mxfp4(flags, cuda, runs, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", cuda)
    reason = reason_on(Machine("cuda", "", (12, 0)), NAME, "b12x", f"{CASE} {flags}")
    assert ("it needs CUDA" in reason) is not runs


def test_flags_that_leave_no_backend_say_which_and_why(monkeypatch):
    """The defaults are such flags: MXFP4, which TensorRT-LLM lacks, with scales that nobody else reads."""
    monkeypatch.setattr("flashinfer_perf.run.placement.find_machine", lambda device: BLACKWELL)
    events = list(run_case(case_of(NAME, f"{CASE} --backends cudnn cutlass trtllm"), SingleRank()))
    assert texts_in(events, "WARNING") == [
        f"cudnn for routine {NAME} cannot run: it reads A's scales in tiles of 128x4 only; add --use_128x4_sf_layout. "
        "Skipping.",
        f"cutlass for routine {NAME} cannot run: it reads A's scales in tiles of 128x4 only; add "
        "--use_128x4_sf_layout. Skipping.",
        f"trtllm for routine {NAME} cannot run: it multiplies NVFP4 only; add --use_nvfp4. Skipping.",
    ]
    assert texts_in(events, "ERROR") == ["No backends to test. Exiting. Try --backends torch."]
    records = [event for event in events if isinstance(event, Record)]
    assert [record.status for record in records] == [Status.UNSUPPORTED] * 3
    assert [record.backend for record in records] == ["cudnn", "cutlass", "trtllm"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 1 --n 8", "missing required flag --k"),
        ("--m 1 --n 8 --k 48", "k (48) must be divisible by the block, which is 32 in mxfp4"),
        ("--m 1 --n 8 --k 24 --use_nvfp4", "k (24) must be divisible by the block"),
        (f"{CASE} --out_dtype float32", "--out_dtype: 'float32' is not one of bfloat16, float16"),
    ],
)
def test_bad_input(flags, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(NAME, flags))
    assert says in str(refusal.value)


def test_what_cannot_fit_is_refused_with_both_byte_counts():
    case = case_of(NAME, "--m 65536 --n 65536 --k 65536")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(65536 * 65536 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)
