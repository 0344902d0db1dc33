"""Both FP8 products with a scale for every tile: their checks, kernels that these must find out, cuBLAS, and limits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf import lazy
from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats import fp8_tiles
from flashinfer_perf.routines.gemm import backends
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.fakes import HOPPER, texts_in
from tests.routines.gemm.cublas import scaled_mm_v2
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
from tests.routines.harness import assert_passes, case_of, launch_of, make_problem, problem_of, run, unconditional

PLAIN, GROUPED = "gemm_fp8_nt_groupwise", "group_gemm_fp8_nt_groupwise"
NAMES = [PLAIN, GROUPED]
CASE = "--m 12 --n 256 --k 384"
GROUPED_CASE = f"{CASE} --group_size 3"
MODES = ["--scale_major_mode MN", "--scale_major_mode K"]
CASES = [(PLAIN, CASE), (GROUPED, GROUPED_CASE)]

each = pytest.mark.parametrize("name", NAMES)
each_mode = pytest.mark.parametrize("mode", MODES)
each_case = pytest.mark.parametrize(("name", "case"), CASES)


# ---- Calls of FlashInfer ----


@covers(PLAIN, "cutlass", "trtllm", "cutile")
@pytest.mark.parametrize("backend", ["cutlass", "trtllm", "cutile"])
@each_mode
@pytest.mark.parametrize("rest", ["", "--mma_sm 2 --out_dtype float16"])
def test_calls_flashinfer_as_it_declares(backend, mode, rest):
    with contract("flashinfer.gemm.gemm_fp8_nt_groupwise", given_out) as kernel:
        launch, problem = launch_of(PLAIN, backend, f"{CASE} {mode} {rest}")
        returned = launch()
    call = kernel.call
    assert call["a"] is problem["a"]
    assert call["b"] is problem["b"]
    assert call["scale_granularity_mnk"] == (1, 128, 128)
    assert (call["out"].shape, call["out"].dtype) == ((12, 256), torch.float16 if rest else torch.bfloat16)
    assert call["out_dtype"] is call["out"].dtype
    assert call["backend"] == backend
    assert launch.outputs(returned) == {"out": call["out"]}
    if backend != "trtllm":
        assert call["a_scale"] is problem["a_scale"]
        assert call["b_scale"] is problem["b_scale"]
        assert call["scale_major_mode"] == mode.split()[1]
        assert call["mma_sm"] == (2 if rest else 1)


@each_mode
def test_trtllm_gets_its_own_layout_of_scales_in_either_mode(mode):
    """As the library's own test gives them: A's with the rows fastest, B's with the tiles along k fastest."""
    with contract("flashinfer.gemm.gemm_fp8_nt_groupwise", given_out) as kernel:
        launch, problem = launch_of(PLAIN, "trtllm", f"{CASE} {mode}")
        launch()
    by_row = (lambda scales: scales) if mode.endswith("K") else (lambda scales: scales.T)
    assert kernel.call["scale_major_mode"] == "MN"
    assert torch.equal(kernel.call["a_scale"], by_row(problem["a_scale"]).T)
    assert torch.equal(kernel.call["b_scale"], by_row(problem["b_scale"]))
    assert kernel.call["a_scale"].shape == (3, 12)
    assert kernel.call["b_scale"].shape == (2, 3)
    assert kernel.call["a_scale"].is_contiguous()
    assert kernel.call["b_scale"].is_contiguous()


@covers(PLAIN, "deepgemm")
@each_mode
def test_deepgemm_gets_scales_with_the_rows_fastest_in_either_mode(mode):
    with contract("flashinfer.gemm.fp8_blockscale_gemm_sm90", given_out) as kernel:
        launch, problem = launch_of(PLAIN, "deepgemm", f"{CASE} {mode}")
        returned = launch()
    by_row = (lambda scales: scales) if mode.endswith("K") else (lambda scales: scales.T)
    call = kernel.call
    assert call["input"] is problem["a"]
    assert call["weight"] is problem["b"]
    assert torch.equal(call["input_scale"], by_row(problem["a_scale"]).T)
    assert torch.equal(call["weight_scale"], by_row(problem["b_scale"]))
    assert (call["input_scale"].is_contiguous(), call["weight_scale"].is_contiguous()) == (True, True)
    assert (call["out"].shape, call["out"].dtype) == ((12, 256), torch.bfloat16)
    assert launch.outputs(returned) == {"out": call["out"]}


def test_deepgemm_is_hoppers(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert reason_on(HOPPER, PLAIN, "deepgemm", CASE) == ""
    assert "bfloat16 only" in reason_on(HOPPER, PLAIN, "deepgemm", f"{CASE} --out_dtype float16")
    assert "divisible by 4" in reason_on(HOPPER, PLAIN, "deepgemm", f"{CASE} --m 3")
    assert "it needs compute capability 9.0" in reason_on(Machine("cuda", "", (10, 0)), PLAIN, "deepgemm", CASE)


@covers(GROUPED, "cutlass", "cutile")
@pytest.mark.parametrize(("backend", "named"), [("cutlass", "trtllm"), ("cutile", "cutile")])
@each_mode
def test_calls_flashinfers_grouped_product_as_it_declares(backend, named, mode):
    with contract("flashinfer.gemm.group_gemm_fp8_nt_groupwise", given_out) as kernel:
        launch, problem = launch_of(GROUPED, backend, f"{GROUPED_CASE} {mode} --mma_sm 2")
        returned = launch()
    call = kernel.call
    for name in ("a", "b", "a_scale", "b_scale", "m_indptr"):
        assert call[name] is problem[name]
    assert (call["scale_major_mode"], call["mma_sm"], call["backend"]) == (mode.split()[1], 2, named)
    assert call["scale_granularity_mnk"] == (1, 128, 128)
    assert (call["out"].shape, call["out"].dtype, call["out_dtype"]) == ((36, 256), torch.bfloat16, torch.bfloat16)
    assert launch.outputs(returned) == {"out": call["out"]}


@pytest.mark.parametrize(("m", "alignment"), [(128, 128), (256, 128), (64, 1), (129, 1)])
def test_cutile_is_told_when_groups_begin_at_its_tiles(m, alignment):
    with contract("flashinfer.gemm.group_gemm_fp8_nt_groupwise", given_out) as kernel:
        launch_of(GROUPED, "cutile", f"--m {m} --n 128 --k 128 --group_size 2 --scale_major_mode K")[0]()
    assert kernel.call["segment_alignment"] == alignment


# ---- cuBLAS ----


@each_case
@each_mode
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("k", [128, 384, 512, 1152])
def test_cublas_gets_what_it_takes_and_passes(name, case, mode, out_dtype, k, monkeypatch):
    monkeypatch.setattr(lazy.torch, "_scaled_mm_v2", scaled_mm_v2)
    with unconditional(name, "cublas"):
        assert_passes(run(name, f"{case} --k {k} {mode} --out_dtype {out_dtype}", "cublas"))


def test_cublas_with_the_rows_scales_fastest_takes_them_as_they_are():
    """No copy: A's scales in mode MN are in its layout. Those of a group are cut out, each in a tensor of its own."""
    launch, problem = launch_of(PLAIN, "cublas", f"{CASE} --scale_major_mode MN")
    assert launch.arguments()["a_scale"].data_ptr() == problem["a_scale"].data_ptr()
    launch, problem = launch_of(GROUPED, "cublas", f"{GROUPED_CASE} --scale_major_mode MN")
    parts = launch.arguments()["a_scales"]
    assert torch.equal(torch.cat(parts), problem["a_scale"].T)
    assert [part.stride() for part in parts] == [(1, 12)] * 3


def test_the_call_fits_pytorchs_declaration():
    """Of the overload with an output; the stand-in in cublas.py has the same parameters."""
    declared = [argument.name for argument in torch.ops.aten._scaled_mm_v2.out._schema.arguments]
    assert declared[:10] == [
        *("self", "mat2", "scale_a", "recipe_a", "swizzle_a", "scale_b", "recipe_b", "swizzle_b", "bias", "out_dtype")
    ]
    assert declared[10:] == ["contraction_dim", "use_fast_accum", "out"]


@each
@pytest.mark.parametrize("version", [None, "12.8", "11.8"])
def test_cublas_needs_a_cuda_that_has_block_scales(name, version, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    reason = reason_on(HOPPER, name, "cublas", CASE)
    assert reason == f"it needs CUDA 12.9 or newer, and this PyTorch was built with {version or 'none'}"


@each
@pytest.mark.parametrize("version", ["12.9", "13.0"])
def test_cublas_runs_on_hopper_and_nowhere_else(name, version, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    assert reason_on(HOPPER, name, "cublas", CASE) == ""
    for capability in ((8, 9), (10, 0), (12, 0)):
        assert "it needs compute capability 9.0" in reason_on(Machine("cuda", "", capability), name, "cublas", CASE)


@each
def test_an_older_pytorch_has_no_block_scales(name, monkeypatch):
    monkeypatch.setattr(backends, "torch", SimpleNamespace(__version__="2.9.1"))
    assert reason_on(HOPPER, name, "cublas", CASE) == "PyTorch 2.9.1 has no block scales; 2.10 has"


# ---- Right kernels pass, wrong ones are caught ----


@each
@each_mode
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "sizes",
    [
        "--m 1 --n 128 --k 128",
        "--m 7 --n 384 --k 256",
        "--m 16 --n 128 --k 4096",
        "--m 3 --n 64 --k 96 --tile_size 32",
    ],
)
def test_torch_passes(name, mode, out_dtype, sizes):
    groups = "--group_size 3" if name == GROUPED else ""
    assert_passes(run(name, f"{sizes} {mode} --out_dtype {out_dtype} {groups}", "torch"))


@each_case
def test_what_is_wrong_with_an_output_is_caught(name, case):
    assert_outputs_are_judged(name, case)
    assert_outputs_are_judged(name, f"{case} --k 4096")


@each_case
@each_mode
def test_wrong_arguments_are_caught(name, case, mode):
    rows, tiles = (-1, -2) if mode.endswith("MN") else (-2, -1)
    changes = {
        "A's scales forgotten": replaced("a_scale", torch.ones_like),
        "B's scales forgotten": replaced("b_scale", torch.ones_like),
        "the neighbouring tile's scales of A": replaced("a_scale", lambda s: s.roll(1, tiles)),
        "the neighbouring row's scales": replaced("a_scale", lambda s: s.roll(1, rows)),
        "the neighbouring tile's scales of B along k": replaced("b_scale", lambda s: s.roll(1, tiles)),
        "the neighbouring tile's scales of B along n": replaced("b_scale", lambda s: s.roll(1, rows)),
        "A's scales twice": replaced("a_scale", lambda s: s * s),
        "half of k": short_by(192),
        "the last tile": short_by(128),
        "the last instruction": short_by(32),
        "A's scales in the other mode": replaced("a_scale", in_the_other_mode),
        "one scale of A": replaced("a_scale", one_changed),
        "one scale of B": replaced("b_scale", one_changed),
        "rows of A shifted": replaced("a", lambda a: a.roll(1, 0)),
        "A read as e5m2": replaced("a", lambda a: a.view(torch.float8_e5m2)),
    }
    assert_all_caught(name, changes, f"{case} {mode}")


def in_the_other_mode(scales: torch.Tensor) -> torch.Tensor:
    return scales.mT.reshape(scales.shape)


def one_changed(scales: torch.Tensor) -> torch.Tensor:
    scales.view(-1)[-1] *= 2
    return scales


def test_groups_that_are_mixed_up_are_caught():
    changes = {
        "the next group's weight": replaced("b", lambda b: b.roll(1, 0)),
        "the next group's scales": replaced("b_scale", lambda s: s.roll(1, 0)),
        "the first group for all": replaced("b", lambda b: b[:1].expand_as(b)),
        "groups of other rows": lambda case, arguments: {"bounds": [0, 11, 24, 36]},
        "the last group left out": lambda case, arguments: {"bounds": [0, 12, 24, 24]},
    }
    assert_all_caught(GROUPED, changes, GROUPED_CASE)


# ---- The problem ----


@each_mode
def test_tensors(mode):
    flip = (lambda *shape: (*shape[:-2], shape[-1], shape[-2])) if mode.endswith("MN") else (lambda *shape: shape)
    _, problem = problem_of(GROUPED, f"{GROUPED_CASE} {mode}")
    assert {name: tuple(tensor.shape) for name, tensor in problem.tensors.items()} == {
        "a": (36, 384),
        "b": (3, 256, 384),
        "a_scale": flip(36, 3),
        "b_scale": flip(3, 2, 3),
        "m_indptr": (4,),
    }
    assert problem["m_indptr"].tolist() == [0, 12, 24, 36]
    assert problem["m_indptr"].dtype is torch.int32
    assert problem["a"].dtype is problem["b"].dtype is torch.float8_e4m3fn
    assert problem["a_scale"].dtype is problem["b_scale"].dtype is torch.float32
    assert all(tensor.is_contiguous() for tensor in problem.tensors.values())


def test_both_modes_are_the_same_numbers():
    (_, by_rows), (_, by_tiles) = (problem_of(PLAIN, f"{CASE} {mode}") for mode in MODES)
    assert torch.equal(by_rows["a"].float(), by_tiles["a"].float())
    assert torch.equal(by_rows["a_scale"].T, by_tiles["a_scale"])
    assert torch.equal(by_rows["b_scale"].T, by_tiles["b_scale"])
    assert torch.equal(by_rows.truth()["out"], by_tiles.truth()["out"])


def test_operands_are_normal_half_of_the_tiles_smaller():
    _, problem = problem_of(PLAIN, "--m 64 --n 128 --k 512 --scale_major_mode K")
    a = fp8_tiles.decode(fp8_tiles.Fp8Tiles(problem["a"], problem["a_scale"]), (1, 128))
    b = fp8_tiles.decode(fp8_tiles.Fp8Tiles(problem["b"], problem["b_scale"]), (128, 128))
    tiles = a.unflatten(1, (-1, 128)).std(dim=-1)
    assert 0.4 < float((tiles < 0.75).float().mean()) < 0.6
    assert float(tiles[tiles < 0.75].mean()) == pytest.approx(0.5, rel=0.02)
    assert float(tiles[tiles > 0.75].mean()) == pytest.approx(1, rel=0.02)
    assert {round(float(part.std()) * 2 * math.sqrt(512), 1) for part in b.split(128, dim=1)} <= {1.0, 2.0}
    out = problem.truth()["out"]
    assert torch.equal(out, a @ b.T) or torch.allclose(out, a @ b.T, rtol=1e-5, atol=1e-5)
    assert 0.4 < float(out.std()) < 0.9  # 5/8 of many tiles; these are four


def test_large_operands_and_truths_are_made_in_parts(monkeypatch):
    _, whole = problem_of(GROUPED, GROUPED_CASE)
    monkeypatch.setattr("flashinfer_perf.routines.gemm.inputs.AT_A_TIME", 5 * 384)
    monkeypatch.setattr("flashinfer_perf.routines.gemm.reference.AT_A_TIME", 7 * 384)
    _, in_parts = problem_of(GROUPED, GROUPED_CASE)
    assert in_parts["a"].shape == whole["a"].shape
    assert float(in_parts["a"].float().std()) == pytest.approx(float(whole["a"].float().std()), rel=0.05)
    truth = in_parts.truth()["out"]
    monkeypatch.undo()
    assert torch.allclose(truth, in_parts.truth()["out"], rtol=1e-5, atol=1e-5)


@each
def test_work(name):
    """By the documented formulas: no scales."""
    groups = 3 if name == GROUPED else 1
    _, problem = problem_of(name, dict(CASES)[name])
    one = Work(2 * 12 * 256 * 384, 12 * 384 + 256 * 384 + 2 * 12 * 256)
    assert problem.work == Work(groups * one.flops, groups * one.bytes)


def test_shown():
    _, problem = problem_of(GROUPED, GROUPED_CASE)
    assert [line.text for line in problem.shown] == [
        "a_val.shape = torch.Size([36, 384])",
        "b_val.shape = torch.Size([3, 256, 384])",
        "a_fp8.shape = torch.Size([36, 384])",
        "b_fp8.shape = torch.Size([3, 256, 384])",
        "a_scale.shape = torch.Size([3, 36])",
        "b_scale.shape = torch.Size([3, 3, 2])",
        "m_indptr.shape = torch.Size([4])",
    ]
    _, plain = problem_of(PLAIN, CASE)
    assert [line.label for line in plain.shown] == [line.label for line in problem.shown[:6]]


# ---- Limits ----


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((PLAIN, b) for b in ("cutlass", "trtllm", "cutile", "cublas")),
        *((GROUPED, b) for b in ("cutlass", "cutile", "cublas")),
    ],
)
def test_without_a_gpu_the_reason_is_said(name, backend):
    assert_runs_nowhere_without_gpu(name, backend, CASE)


@pytest.mark.parametrize(
    ("name", "backend", "flags", "says"),
    [
        *[
            (name, b, f"{CASE} --tile_size 64", "tiles of 128")
            for name in NAMES
            for b in ("cutlass", "cutile", "cublas")
        ],
        (PLAIN, "trtllm", f"{CASE} --tile_size 64", "tiles of 128"),
        (PLAIN, "trtllm", f"{CASE} --out_dtype float16", "bfloat16 only"),
        (PLAIN, "trtllm", "--m 4 --n 128 --k 128", "a k of 256 or more"),
        (PLAIN, "cutile", f"{CASE} --scale_major_mode MN", "--scale_major_mode K"),
        (GROUPED, "cutile", f"{CASE} --scale_major_mode MN", "--scale_major_mode K"),
        (PLAIN, "cublas", "--m 6 --n 128 --k 128", "m must be divisible by 4"),
        (GROUPED, "cublas", "--m 6 --n 128 --k 128", "m must be divisible by 4"),
        (GROUPED, "cutlass", "--m 6 --n 128 --k 128", "m must be divisible by 4"),
    ],
)
def test_limits(name, backend, flags, says):
    assert_refused(name, backend, flags, says)


@pytest.mark.parametrize(
    ("capability", "m", "refused"),
    [((10, 0), 6, False), ((10, 0), 32, False), ((10, 0), 34, True), ((12, 0), 6, True), ((12, 0), 34, True)],
)
def test_cutlass_reads_scales_of_four_rows_at_a_time_above_32(capability, m, refused):
    reason = reason_on(Machine("cuda", "", capability), PLAIN, "cutlass", f"--m {m} --n 128 --k 128")
    assert ("divisible by 4" in reason) is refused


@pytest.mark.parametrize("backend", ["cutlass", "cutile"])
def test_compute_capability_12_computes_one_group_only(backend):
    flags = f"{GROUPED_CASE} --scale_major_mode K"
    assert "one group only" in reason_on(Machine("cuda", "", (12, 0)), GROUPED, backend, flags)
    assert "one group only" not in reason_on(Machine("cuda", "", (10, 0)), GROUPED, backend, flags)
    assert "one group only" not in reason_on(Machine("cuda", "", (12, 0)), GROUPED, backend, f"{flags} --group_size 1")


@each
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--m 4 --n 128", "missing required flag --k"),
        ("--m 4 --n 128 --k 192", "tile_size (128) must divide k (192)"),
        ("--m 4 --n 192 --k 128", "tile_size (128) must divide n (192)"),
        (f"{CASE} --tile_size 0", "--tile_size must be at least 1"),
        (f"{CASE} --scale_major_mode NM", "--scale_major_mode: 'NM' is not one of MN, K"),
        (f"{CASE} --out_dtype float32", "--out_dtype: 'float32' is not one of bfloat16, float16"),
        (f"{CASE} --mma_sm 3", "--mma_sm: '3' is not one of 1, 2"),
        (f"{CASE} --backends cudnn", "--backends of"),
    ],
)
def test_bad_input(name, flags, says):
    with pytest.raises(InvalidInput) as refusal:
        make_problem(case_of(name, flags))
    assert says in str(refusal.value)


def test_groups_are_at_least_one():
    with pytest.raises(InvalidInput, match="--group_size must be at least 1"):
        case_of(GROUPED, f"{CASE} --group_size 0")


@each
def test_what_cannot_fit_is_refused_with_both_byte_counts(name):
    case = case_of(name, "--m 65536 --n 65536 --k 65536")
    with pytest.raises(DoesNotFit) as refusal:
        case.routine.make(case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))
    assert str(65536 * 65536 * 2) in str(refusal.value)
    assert str(int((1 << 30) * 0.9)) in str(refusal.value)


@each
def test_without_backends_the_default_gives_way_to_one_that_runs(name):
    events = list(run_case(case_of(name, CASE), SingleRank()))
    (warning,) = texts_in(events, "WARNING")
    assert warning.startswith("The default backend cutlass cannot run here: it needs a CUDA GPU")
    assert warning.endswith("Using torch instead.")
    (record,) = (event for event in events if hasattr(event, "status"))
    assert (record.backend, record.status) == ("torch", Status.OK)
