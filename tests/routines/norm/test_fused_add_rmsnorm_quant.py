"""fused_add_rmsnorm_quant: its calls, its checks, and kernels that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.routines.norm.fused_add_rmsnorm_quant import add_rmsnorm_quant
from flashinfer_perf.run.launch import Launch
from tests.contract import contract, covers
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    make_problem,
    problem_of,
    run,
    run_broken,
    unconditional,
)

NAME = "fused_add_rmsnorm_quant"
API = "flashinfer.norm.fused_add_rmsnorm_quant"
CASE = "--batch_size 8 --hidden_size 96 --scale 0.7"


# ---- The call of the library ----


@covers(NAME, "cuda", "cute-dsl")
@pytest.mark.parametrize("backend", ["cuda", "cute-dsl"])
@pytest.mark.parametrize(("input_dtype", "out_dtype"), [("bfloat16", "fp8_e4m3"), ("float16", "fp8_e5m2")])
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_flashinfer_is_called_as_it_declares(backend, input_dtype, out_dtype, pdl):
    flags = f"--batch_size 3 --hidden_size 40 --scale 0.5 --eps 1e-5 {pdl}"
    with contract(API) as kernel:
        launch, problem = launch_of(NAME, backend, f"{flags} --input_dtype {input_dtype} --out_dtype {out_dtype}")
        returned = launch()
    call = kernel.call
    assert set(call) == {"out", "input", "residual", "weight", "scale", "eps", "enable_pdl"}
    assert call["out"].shape == (3, 40)
    assert call["out"].dtype is DType(out_dtype).torch
    assert call["input"] is problem["x"]
    assert call["residual"] is problem["residual"]
    assert call["weight"] is problem["weight"]
    assert call["scale"].dtype is torch.float32
    assert call["scale"].tolist() == [0.5]
    assert call["eps"] == 1e-5
    assert call["enable_pdl"] is bool(pdl)
    assert set(launch.outputs(returned)) == {"out", "residual"}


def test_cuda_passes_the_engine_with_a_right_kernel():
    def kernel(out, input, residual, weight, scale, eps, enable_pdl):
        add_rmsnorm_quant(out, input, residual, weight, float(scale), eps, DType.FP8_E4M3)

    with contract(API, lambda **arguments: kernel(**arguments)), unconditional(NAME, "cuda"):
        assert_passes(run(NAME, CASE, "cuda"))


# ---- Right kernels pass ----


@pytest.mark.parametrize("input_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("out_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --hidden_size 1",
        "--batch_size 1 --hidden_size 7",
        "--batch_size 5 --hidden_size 129 --scale 0.37",
        "--batch_size 4 --hidden_size 64 --scale 3.0 --eps 0.1",
        "--batch_size 33 --hidden_size 256 --scale 1e-4",  # saturates
        "--batch_size 3 --hidden_size 80 --scale 1e4",  # subnormal
        "--batch_size 2 --hidden_size 48 --eps 0",
    ],
)
def test_torch_passes(flags, input_dtype, out_dtype):
    assert_passes(run(NAME, f"{flags} --input_dtype {input_dtype} --out_dtype {out_dtype}", "torch"))


# ---- Wrong kernels are caught ----


def kernel_of(problem, case, change):
    """A launch that is right but for ``change``, a function of the arguments of the right kernel."""

    def kernel(out, input, residual, weight):
        change(out, input, residual, weight)

    arguments = {"input": problem["x"], "residual": problem["residual"], "weight": problem["weight"]}
    out = torch.empty_like(problem["x"], dtype=case.out_dtype.torch)
    return Launch(kernel, kwargs={"out": out, **arguments}, mutates=("out", "residual"))


def right(case, out, input, residual, weight, scale=None):
    add_rmsnorm_quant(out, input, residual, weight, scale or case.scale, case.eps, case.out_dtype)


def zeros(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out.zero_()


def writes_nothing(case, out, input, residual, weight):
    pass


def changes_the_weight(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    weight.view(torch.int16)[0] += 1


def changes_the_input(case, out, input, residual, weight):
    """As the kernel without quantisation does, which normalises in place."""
    right(case, out, input, residual, weight)
    input.copy_(out.to(input.dtype))


def one_row_off(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out.copy_(out.roll(1, dims=0))


def one_element_off(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out.copy_(out.roll(1, dims=1))


def one_code_off(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out.view(torch.int8).add_(1)


def one_element_far_off(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out[-1, -1] = -out[-1, -1].float() if out[-1, -1].float() else 1.0


def nan_in_out(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    out[1, 2] = float("nan")


def nan_in_the_residual(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    residual[1, 2] = float("nan")


def multiplies_by_the_scale(case, out, input, residual, weight):
    """The error of the documents' own reference."""
    right(case, out, input, residual, weight, scale=1 / case.scale)


def ignores_the_scale(case, out, input, residual, weight):
    right(case, out, input, residual, weight, scale=1.0)


def leaves_the_residual(case, out, input, residual, weight):
    right(case, out, input, residual.clone(), weight)


def ignores_the_residual(case, out, input, residual, weight):
    right(case, out, input, torch.zeros_like(residual), weight)
    residual.add_(input)


def adds_the_residual_twice(case, out, input, residual, weight):
    right(case, out, input, residual, weight)
    residual.add_(input)


def ignores_the_weight(case, out, input, residual, weight):
    right(case, out, input, residual, torch.ones_like(weight))


def norm_of_the_input_alone(case, out, input, residual, weight):
    h = input.float() + residual.float()
    size = input.float().square().mean(dim=-1, keepdim=True).add(case.eps).sqrt()
    residual.copy_(h)
    out.copy_(encode(h / size * weight.float() / case.scale, case.out_dtype))


def does_not_saturate(case, out, input, residual, weight):
    """As torch's cast to e5m2, and to e4m3 in older versions: what is too large becomes infinite or NaN."""
    right(case, out, input, residual, weight)
    largest = out.float().abs() == torch.finfo(out.dtype).max
    out.view(torch.uint8)[largest] += 1


BROKEN = [
    zeros,
    writes_nothing,
    changes_the_weight,
    changes_the_input,
    one_row_off,
    one_element_off,
    one_code_off,
    one_element_far_off,
    nan_in_out,
    nan_in_the_residual,
    multiplies_by_the_scale,
    ignores_the_scale,
    leaves_the_residual,
    ignores_the_residual,
    adds_the_residual_twice,
    ignores_the_weight,
    norm_of_the_input_alone,
]


@pytest.mark.parametrize("out_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_kernel_is_caught(change, out_dtype):
    record = run_broken(
        NAME,
        lambda case, problem: kernel_of(problem, case, lambda *arguments: change(case, *arguments)),
        f"{CASE} --out_dtype {out_dtype}",
    )
    assert_caught(record)


@pytest.mark.parametrize("out_dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_a_cast_that_does_not_saturate_is_caught(out_dtype):
    record = run_broken(
        NAME,
        lambda case, problem: kernel_of(problem, case, lambda *arguments: does_not_saturate(case, *arguments)),
        f"--batch_size 4 --hidden_size 64 --scale 1e-5 --out_dtype {out_dtype}",
    )
    assert_caught(record)


def test_the_wrong_number_format_is_caught():
    def prepare(case, problem):
        launch = kernel_of(problem, case, lambda *arguments: right(case, *arguments))
        return Launch(
            launch.fn, kwargs={**launch.kwargs, "out": torch.empty_like(problem["x"])}, mutates=launch.mutates
        )

    record = run_broken(NAME, prepare, CASE)
    assert record.status.value in ("mismatch", "failed")


# ---- The problem ----


def test_tensors():
    _, problem = problem_of(NAME, "--batch_size 3 --hidden_size 40 --input_dtype float16")
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in problem.tensors.items()}
    assert shapes == {
        "x": ((3, 40), torch.float16),
        "residual": ((3, 40), torch.float16),
        "weight": ((40,), torch.float16),
    }


def test_the_same_seed_gives_the_same_tensors_and_another_one_others():
    first, same, other = (make_problem(case_of(NAME, random_seed=seed)) for seed in (1, 1, 2))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, same[name])
        assert not torch.equal(tensor, other[name])
    assert not torch.equal(first["x"], first["residual"])


def test_work():
    """6 FLOPs an element; 2E in, H weights, E residual out in 2 bytes, E out in 1."""
    _, problem = problem_of(NAME, "--batch_size 3 --hidden_size 40")
    assert problem.work == Work(flops=6 * 120, bytes=2 * 2 * 120 + 2 * 40 + 2 * 120 + 120)
