"""rmsnorm_quant: its calls, its checks, and kernels that those must find out."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.events import Message
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    run,
    run_broken,
    unconditional,
)
from tests.routines.norm import kernels

NAME = "rmsnorm_quant"
CASE = "--batch_size 8 --hidden_size 96 --scale 0.7"
IMPLEMENTATIONS = ["cuda", "cute-dsl"]
FORMATS = ["fp8_e4m3", "fp8_e5m2"]
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


# ---- The call of the library ----


@covers(NAME, *IMPLEMENTATIONS)
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize(("input_dtype", "out_dtype"), [("bfloat16", "fp8_e4m3"), ("float16", "fp8_e5m2")])
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_calls_flashinfer_as_it_declares(backend, input_dtype, out_dtype, pdl):
    flags = f"--batch_size 3 --hidden_size 40 --scale 0.5 --eps 1e-5 {pdl}"
    with contract("flashinfer.norm.rmsnorm_quant") as kernel:
        line = f"{flags} --input_dtype {input_dtype} --out_dtype {out_dtype}"
        launch, problem = launch_of(NAME, backend, line)
        returned = launch()
    call = kernel.call
    assert set(call) == {"out", "input", "weight", "scale", "eps", "enable_pdl"}
    assert (call["out"].shape, call["out"].dtype) == ((3, 40), DType(out_dtype).torch)
    assert call["input"] is problem["x"]
    assert call["weight"] is problem["weight"]
    assert (call["scale"].dtype, call["scale"].tolist()) == (torch.float32, [0.5])
    assert call["eps"] == 1e-5
    assert call["enable_pdl"] is bool(pdl)
    assert launch.outputs(returned) == {"out": call["out"]}
    assert launch.resolved_backend == backend


def reached(function, out, input, weight, scale, eps, **options):
    """What both kernels compute: a division, a clamp to the format's largest number, a cast."""
    options.pop("enable_pdl", None)
    x = input.float()
    normed = x / x.square().mean(dim=-1, keepdim=True).add(eps).sqrt() * weight.float()
    out.copy_((normed * scale.reciprocal()).clamp(-LARGEST[out.dtype], LARGEST[out.dtype]))


@pytest.mark.parametrize("out_dtype", FORMATS)
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_each_name_reaches_its_own_implementation(backend, out_dtype):
    def kernel(function, out, input, weight, scale, eps, *pdl, **options):
        reached(function, out, input, weight, scale, eps, **options)

    with kernels.flashinfer_without_gpu(kernel) as ran, unconditional(NAME, backend):
        record = run(NAME, f"{CASE} --out_dtype {out_dtype}", backend)
    assert_passes(record)
    assert set(ran) == {backend} == {record.resolved_backend}


def test_the_installed_library_divides_and_clamps_to_each_formats_range():
    """Facts of both implementations that the reference relies on; 0.6.2 clamped e5m2 to 448 too."""
    flashinfer, cutlass = pytest.importorskip("flashinfer"), pytest.importorskip("cutlass")
    largest = sys.modules["flashinfer.norm.utils"].get_fp8_max
    assert (largest(cutlass.Float8E4M3FN), largest(cutlass.Float8E5M2)) == (448.0, 57344.0)
    dsl = inspect.getsource(sys.modules["flashinfer.norm.kernels.rmsnorm"])
    assert "inv_scale = rcp_approx_ftz(mS[0])" in dsl
    cuda = (Path(flashinfer.__file__).parent / "data/include/flashinfer/norm.cuh").read_text()
    for format, limit in (("e4m3", "448.f"), ("e5m2", "57344.f")):
        assert re.search(
            rf"QuantTypeStaticVals<__nv_fp8_{format}> {{\s*static constexpr float MAX_VAL = {limit};", cuda
        )
    assert "const float scale_inv = 1.0f / scale_val;" in cuda
    assert "fmaxf(-max_val, fminf(output_vec[j], max_val))" in cuda


# ---- Right kernels pass ----


@pytest.mark.parametrize("input_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("out_dtype", FORMATS)
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --hidden_size 1",
        "--batch_size 5 --hidden_size 129 --scale 0.37",
        "--batch_size 4 --hidden_size 64 --scale 3.0 --eps 0.1",
        "--batch_size 33 --hidden_size 256 --scale 1e-5",  # saturates
        "--batch_size 3 --hidden_size 80 --scale 1e4",  # subnormal
    ],
)
def test_torch_passes(flags, input_dtype, out_dtype):
    assert_passes(run(NAME, f"{flags} --input_dtype {input_dtype} --out_dtype {out_dtype}", "torch"))


# ---- Wrong kernels are caught ----


def multiplies_by_the_scale(case, arguments):
    """The error of the documents' own reference."""
    return {"scale": 1 / case.scale}


def ignores_the_scale(case, arguments):
    return {"scale": 1.0}


def one_code_off(case, arguments):
    arguments["out"].view(torch.int8).add_(1)


def clamped_to_448(case, arguments):
    """As FlashInfer 0.6.2 does in both formats."""
    out = arguments["out"]
    out.copy_(out.float().clamp(-448, 448))


@pytest.mark.parametrize("out_dtype", FORMATS)
@pytest.mark.parametrize(
    "spoil",
    [
        kernels.zeros("out"),
        kernels.nan("out"),
        kernels.one_row_off("out"),
        kernels.one_column_off("out"),
        kernels.last_row_missing("out"),
        kernels.changes_weight,
        one_code_off,
    ],
)
def test_a_spoilt_output_is_caught(spoil, out_dtype):
    assert_caught(run_broken(NAME, kernels.wrong(NAME, after=spoil), f"{CASE} --out_dtype {out_dtype}"))


@pytest.mark.parametrize("out_dtype", FORMATS)
@pytest.mark.parametrize(
    "before", [multiplies_by_the_scale, ignores_the_scale, kernels.ignores_weight, kernels.other_eps]
)
def test_a_wrong_argument_is_caught(before, out_dtype):
    line = f"{CASE} --eps 0.3 --out_dtype {out_dtype}"
    assert_caught(run_broken(NAME, kernels.wrong(NAME, before=before), line))


def test_a_kernel_that_writes_nothing_is_caught():
    assert_caught(run_broken(NAME, kernels.writes_nothing(NAME), CASE))


def test_a_clamp_to_the_other_formats_range_is_caught():
    line = "--batch_size 8 --hidden_size 96 --scale 1e-3 --out_dtype fp8_e5m2"
    assert_caught(run_broken(NAME, kernels.wrong(NAME, after=clamped_to_448), line))


# ---- The problem ----


def test_truth_by_hand():
    _, problem = problem_of(NAME, "--batch_size 2 --hidden_size 3 --eps 0.5 --scale 0.25")
    row, weight = problem["x"][1].tolist(), problem["weight"].tolist()
    size = (sum(value * value for value in row) / 3 + 0.5) ** 0.5
    expected = [value / size * w / 0.25 for value, w in zip(row, weight, strict=True)]
    assert problem.truth()["out"][1].tolist() == pytest.approx(expected, rel=2**-4)


def test_work():
    """5 FLOPs an element; E in and H weights in 2 bytes, E out in 1."""
    _, problem = problem_of(NAME, "--batch_size 3 --hidden_size 40")
    assert problem.work == Work(flops=5 * 120, bytes=2 * 120 + 2 * 40 + 120)


def test_shown():
    _, problem = problem_of(NAME, "--batch_size 3 --hidden_size 40 --scale 0.5")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([3, 40])",
        "input_tensor.dtype = torch.bfloat16",
        "weight.shape = torch.Size([40])",
        "out_tensor.dtype = torch.float8_e4m3fn",
        "scale = 0.5",
    ]


# ---- Bad input ----


@pytest.mark.parametrize("name", [NAME, "fused_add_rmsnorm_quant"])
@pytest.mark.parametrize("scale", ["0", "0.0", "-1", "-1e-3", "nan", "inf"])
def test_a_scale_that_is_not_positive_is_invalid(name, scale):
    with pytest.raises(InvalidInput, match="--scale"):
        case_of(name, f"--batch_size 3 --hidden_size 40 --scale {scale}")


@pytest.mark.parametrize("name", [NAME, "fused_add_rmsnorm_quant"])
@pytest.mark.parametrize("out_dtype", ["nvfp4", "mxfp4"])
def test_fp4_is_for_other_routines(name, out_dtype):
    with pytest.raises(InvalidInput, match=f"--out_dtype: '{out_dtype}' is not one of fp8_e4m3, fp8_e5m2"):
        case_of(name, f"--batch_size 3 --hidden_size 40 --out_dtype {out_dtype}")


@pytest.mark.parametrize("name", [NAME, "fused_add_rmsnorm_quant", "fused_add_rmsnorm", "gemma_fused_add_rmsnorm"])
def test_num_heads_is_ignored_and_said_to_be(name):
    case = case_of(name, "--batch_size 3 --hidden_size 40 --num_heads 2 --backends torch")
    events = list(run_case(case, SingleRank()))
    texts = [event.text for event in events if isinstance(event, Message)]
    assert f"--num_heads is ignored: {name} does not read it." in texts
    record = events[-1]
    assert_passes(record)
    assert record.ignored_flags == ("num_heads",)
    assert "num_heads" not in record.case
