"""fused_add_rmsnorm and gemma_fused_add_rmsnorm: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.work import Work
from tests.contract import contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.norm import kernels

NAMES = ["fused_add_rmsnorm", "gemma_fused_add_rmsnorm"]
CASE = "--batch_size 5 --hidden_size 96"
IMPLEMENTATIONS = ["cuda", "cute-dsl"]

pytestmark = pytest.mark.parametrize("name", NAMES)


# ---- The call of the library ----


@covers("fused_add_rmsnorm", *IMPLEMENTATIONS)
@covers("gemma_fused_add_rmsnorm", *IMPLEMENTATIONS)
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_calls_flashinfer_as_it_declares(name, backend, pdl):
    with contract(f"flashinfer.norm.{name}") as kernel:
        launch, problem = launch_of(name, backend, f"--batch_size 3 --hidden_size 40 --eps 1e-5 {pdl}")
        returned = launch()
    call = kernel.call
    assert set(call) == {"input", "residual", "weight", "eps", "enable_pdl"}
    assert call["input"] is problem["x"]
    assert call["residual"] is problem["residual"]
    assert call["weight"] is problem["weight"]
    assert call["eps"] == 1e-5
    assert call["enable_pdl"] is bool(pdl)
    assert launch.outputs(returned) == {"input": problem["x"], "residual": problem["residual"]}
    assert launch.resolved_backend == backend


def reached(function, input, residual, weight, eps, *pdl, weight_bias=None, **options):
    """What both implementations compute: the norm of the sum before it is rounded."""
    bias = float(function.startswith("gemma")) if weight_bias is None else weight_bias
    h = input.float() + residual.float()
    residual.copy_(h)
    input.copy_(h / h.square().mean(dim=-1, keepdim=True).add(eps).sqrt() * (bias + weight.float()))


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_each_name_reaches_its_own_implementation(name, backend):
    with kernels.flashinfer_without_gpu(reached) as ran, unconditional(name, backend):
        record = run(name, CASE, backend)
    assert_passes(record)
    assert set(ran) == {backend} == {record.resolved_backend}


# ---- Right kernels pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --hidden_size 1",
        "--batch_size 3 --hidden_size 129",
        "--batch_size 4 --hidden_size 64 --eps 0.1",
        "--batch_size 3 --hidden_size 16384",
    ],
)
def test_torch_passes(name, flags, dtype):
    assert_passes(run(name, f"{flags} --input_dtype {dtype}", "torch"))


# ---- Wrong kernels are caught ----


def leaves_the_residual(case, arguments):
    """The norm is right, the update is lost."""
    return {"residual": arguments["residual"].clone()}


def adds_twice(case, arguments):
    arguments["residual"].add_(arguments["residual"], alpha=0.01)


def leaves_the_input(case, arguments):
    return {"input": arguments["input"].clone()}


def swaps_the_outputs(case, arguments):
    residual = arguments["residual"].clone()
    arguments["residual"].copy_(arguments["input"])
    arguments["input"].copy_(residual)


@pytest.mark.parametrize(
    "spoil",
    [
        *[spoil(output) for output in ("input", "residual") for spoil in (kernels.zeros, kernels.nan)],
        *[spoil(output) for output in ("input", "residual") for spoil in (kernels.one_row_off, kernels.one_column_off)],
        kernels.last_row_missing("input"),
        kernels.last_row_missing("residual"),
        kernels.changes_weight,
        adds_twice,
        swaps_the_outputs,
    ],
)
def test_a_spoilt_output_is_caught(name, spoil):
    assert_caught(run_broken(name, kernels.wrong(name, after=spoil), CASE))


@pytest.mark.parametrize("before", [leaves_the_residual, leaves_the_input, kernels.ignores_weight, kernels.other_eps])
def test_a_wrong_argument_is_caught(name, before):
    assert_caught(run_broken(name, kernels.wrong(name, before=before), f"{CASE} --eps 0.3"))


def test_a_kernel_that_writes_nothing_is_caught(name):
    assert_caught(run_broken(name, kernels.writes_nothing(name), CASE))


def test_the_other_routines_weight_is_caught(name):
    """weight instead of 1 + weight, and the other way round."""
    other = {"bias": 0.0 if name.startswith("gemma") else 1.0}
    assert_caught(run_broken(name, kernels.wrong(name, before=lambda case, arguments: other), CASE))


# ---- The problem ----


def test_truth_by_hand(name):
    _, problem = problem_of(name, "--batch_size 2 --hidden_size 3 --eps 0.5")
    h = [x + r for x, r in zip(problem["x"][1].tolist(), problem["residual"][1].tolist(), strict=True)]
    size = (sum(value * value for value in h) / 3 + 0.5) ** 0.5
    bias = float(name.startswith("gemma"))
    expected = [value / size * (bias + w) for value, w in zip(h, problem["weight"].tolist(), strict=True)]
    truth = problem.truth()
    assert truth["input"][1].tolist() == pytest.approx(expected, rel=1e-6)
    assert truth["residual"][1].tolist() == pytest.approx(h, rel=1e-6)


def test_work(name):
    """6 FLOPs an element; two inputs in, two out, H weights, 2 bytes each."""
    _, problem = problem_of(name, "--batch_size 3 --hidden_size 40")
    assert problem.work == Work(flops=6 * 120, bytes=2 * (4 * 120 + 40))


def test_shown(name):
    _, problem = problem_of(name, "--batch_size 3 --hidden_size 40 --input_dtype float16")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([3, 40])",
        "input_tensor.dtype = torch.float16",
        "residual_tensor.shape = torch.Size([3, 40])",
        "weight.shape = torch.Size([40])",
    ]
