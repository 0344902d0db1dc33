"""rmsnorm and gemma_rmsnorm: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.record import Status
from flashinfer_perf.core.work import Work
from tests.contract import Gives, contract, covers
from tests.fakes import HOPPER
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    records_of,
    run,
    run_broken,
    unconditional,
)
from tests.routines.norm import kernels

NAMES = ["rmsnorm", "gemma_rmsnorm"]
CASE = "--batch_size 5 --hidden_size 96"
THREE_DIMENSIONS = "--batch_size 5 --num_heads 3 --hidden_size 64"
IMPLEMENTATIONS = ["cuda", "cute-dsl"]

pytestmark = pytest.mark.parametrize("name", NAMES)


# ---- The call of the library ----


@covers("rmsnorm", *IMPLEMENTATIONS)
@covers("gemma_rmsnorm", *IMPLEMENTATIONS)
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize(("flags", "shape"), [("", (3, 40)), ("--num_heads 2", (3, 2, 40))])
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_calls_flashinfer_as_it_declares(name, backend, flags, shape, pdl):
    with contract(f"flashinfer.norm.{name}", Gives(shape, torch.float16)) as kernel:
        line = f"--batch_size 3 --hidden_size 40 --input_dtype float16 --eps 1e-5 {flags} {pdl}"
        launch, problem = launch_of(name, backend, line)
        returned = launch()
    call = kernel.call
    assert set(call) == {"input", "weight", "eps", "out", "enable_pdl"}
    assert call["input"] is problem["x"]
    assert call["weight"] is problem["weight"]
    assert (call["out"].shape, call["out"].dtype) == (shape, torch.float16)
    assert call["eps"] == 1e-5
    assert call["enable_pdl"] is bool(pdl)
    assert launch.outputs(returned) == {"out": call["out"]}
    assert launch.resolved_backend == backend


def reached(function, *args, **kwargs):
    """A right kernel behind FlashInfer's own dispatch: the CUDA module's functions and the DSL's."""
    arguments = dict(zip(("out", "input", "weight"), args, strict=False))
    if function == "qk_rmsnorm" or "weight_bias" in kwargs:  # the DSL's take the output last
        arguments = dict(zip(("input", "weight", "out"), args, strict=False))
    bias = kwargs.get("weight_bias", float(function == "gemma_rmsnorm"))
    x = arguments["input"].float()
    size = x.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt()
    arguments["out"].copy_(x / size * (bias + arguments["weight"].float()))


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize("flags", [CASE, THREE_DIMENSIONS])
def test_each_name_reaches_its_own_implementation(name, backend, flags):
    with kernels.flashinfer_without_gpu(reached) as ran, unconditional(name, backend):
        record = run(name, flags, backend)
    assert_passes(record)
    assert set(ran) == {backend} == {record.resolved_backend}


# ---- Right kernels pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --hidden_size 1",
        "--batch_size 1 --hidden_size 7",
        "--batch_size 2 --num_heads 5 --hidden_size 1",
        "--batch_size 3 --num_heads 1 --hidden_size 129",
        "--batch_size 4 --hidden_size 64 --eps 0.1",
        "--batch_size 2 --hidden_size 48 --eps 0",
        "--batch_size 3 --hidden_size 16384",
        "--batch_size 3 --hidden_size 64 --eps 1e6",
    ],
)
def test_torch_passes(name, flags, dtype):
    assert_passes(run(name, f"{flags} --input_dtype {dtype}", "torch"))


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("flags", [CASE, THREE_DIMENSIONS])
@pytest.mark.parametrize(
    "spoil",
    [
        kernels.zeros("out"),
        kernels.nan("out"),
        kernels.one_row_off("out"),
        kernels.one_column_off("out"),
        kernels.last_row_missing("out"),
        kernels.changes_weight,
    ],
)
def test_a_spoilt_output_is_caught(name, spoil, flags):
    assert_caught(run_broken(name, kernels.wrong(name, after=spoil), flags))


@pytest.mark.parametrize("flags", [f"{CASE} --eps 0.1", f"{THREE_DIMENSIONS} --eps 0.1"])
@pytest.mark.parametrize("before", [kernels.ignores_weight, kernels.other_eps])
def test_a_wrong_argument_is_caught(name, before, flags):
    assert_caught(run_broken(name, kernels.wrong(name, before=before), flags))


def test_a_kernel_that_writes_nothing_is_caught(name):
    assert_caught(run_broken(name, kernels.writes_nothing(name), CASE))


def test_the_other_routines_weight_is_caught(name):
    """weight instead of 1 + weight, and the other way round."""
    other = {"bias": 0.0 if name == "gemma_rmsnorm" else 1.0}
    assert_caught(run_broken(name, kernels.wrong(name, before=lambda case, arguments: other), CASE))


def test_a_norm_over_all_heads_is_caught(name):
    """Of 3D input each head has a norm of its own."""

    def norm_over_heads(case, arguments):
        x, out = arguments["input"].float(), arguments["out"]
        own = x.square().mean(dim=-1, keepdim=True)
        out.copy_(out.float() * own.sqrt() / own.mean(dim=-2, keepdim=True).sqrt())

    assert_caught(run_broken(name, kernels.wrong(name, after=norm_over_heads), THREE_DIMENSIONS))


def test_half_a_percent_is_caught(name):
    """About bf16's unit roundoff."""

    def scaled(case, arguments):
        arguments["out"].copy_(arguments["out"].float() * 1.005)

    assert_caught(run_broken(name, kernels.wrong(name, after=scaled), "--batch_size 16 --hidden_size 512"))


# ---- The problem ----


def test_tensors(name):
    _, problem = problem_of(name, f"{THREE_DIMENSIONS} --input_dtype float16")
    shapes = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in problem.tensors.items()}
    assert shapes == {"x": ((5, 3, 64), torch.float16), "weight": ((64,), torch.float16)}


def test_truth_by_hand(name):
    """One row in plain Python."""
    _, problem = problem_of(name, "--batch_size 2 --hidden_size 3 --eps 0.5")
    row, weight = problem["x"][1].tolist(), problem["weight"].tolist()
    size = (sum(value * value for value in row) / 3 + 0.5) ** 0.5
    expected = [value / size * (w + (name == "gemma_rmsnorm")) for value, w in zip(row, weight, strict=True)]
    assert problem.truth()["out"][1].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("flags", "elements", "hidden"), [(CASE, 480, 96), (THREE_DIMENSIONS, 960, 64)])
def test_work(name, flags, elements, hidden):
    """5 FLOPs an element; E in, H weights, E out, 2 bytes each."""
    _, problem = problem_of(name, flags)
    assert problem.work == Work(flops=5 * elements, bytes=2 * (2 * elements + hidden))


def test_shown(name):
    _, problem = problem_of(name, THREE_DIMENSIONS)
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([5, 3, 64])",
        "input_tensor.dtype = torch.bfloat16",
        "weight.shape = torch.Size([64])",
    ]


# ---- Limits ----


def test_the_cuda_kernels_count_in_32_bits(name):
    case = case_of(name, f"--batch_size {1 << 19} --hidden_size 8192 --backends cuda")
    backend = case.routine.backends["cuda"]
    _, reason = backend.unmet(HOPPER, case.flags)
    assert "2^32" in reason
    assert case.routine.backends["cute-dsl"].unmet(HOPPER, case.flags) is None


def test_three_dimensions(name):
    """Gemma's CUDA kernel takes two only, and says so before anything is allocated for it."""
    case = case_of(name, f"{THREE_DIMENSIONS} --backends cuda cute-dsl")
    unmet = {backend: case.routine.backends[backend].unmet(HOPPER, case.flags) for backend in IMPLEMENTATIONS}
    assert unmet["cute-dsl"] is None
    assert (unmet["cuda"] is None) == (name == "rmsnorm")
    if unmet["cuda"]:
        assert "2D input only; use --backends cute-dsl" in unmet["cuda"][1]


def test_without_a_gpu_flashinfer_says_why(name):
    records = records_of(case_of(name, f"{CASE} --backends cuda cute-dsl"))
    assert [record.status for record in records] == [Status.UNSUPPORTED] * 2
    assert all("it needs a CUDA GPU" in record.reason for record in records)
