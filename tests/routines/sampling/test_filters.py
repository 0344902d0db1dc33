"""softmax, both renormalisations and the mask: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import inspect

import pytest
import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.sampling import eager
from flashinfer_perf.run.launch import Launch
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, routine_named, run, run_broken

FILTERS = {
    "top_k_renorm_probs": ("probs", "renorm_probs", "--top_k 12"),
    "top_p_renorm_probs": ("probs", "renorm_probs", "--top_p 0.6"),
    "top_k_mask_logits": ("logits", "masked_logits", "--top_k 12"),
}
ALL = {"softmax": ("logits", "probs", "--temperature 0.7"), **FILTERS}
DTYPES = ("float32", "float16", "bfloat16")
SHAPE = "--batch_size 9 --vocab_size 50"


# ---- The calls of the library ----


@pytest.mark.parametrize("name", ALL)
@covers("softmax", "cuda")
@covers("top_k_renorm_probs", "cuda")
@covers("top_p_renorm_probs", "cuda")
@covers("top_k_mask_logits", "cuda")
def test_cuda_calls_flashinfer_as_it_declares(name):
    source, output, flags = ALL[name]
    with contract(f"flashinfer.sampling.{name}", Gives((9, 50), torch.float32)) as kernel:
        launch, problem = launch_of(name, "cuda", f"{SHAPE} {flags}")
        found = launch.outputs(launch())
    option, value = flags.removeprefix("--").split()
    expected = {source: problem[source], option: float(value) if "." in value else int(value)}
    expected |= {"enable_pdl": False} if name == "softmax" else {}
    assert kernel.call == expected
    assert set(found) == {output} == set(problem.checks)


def test_pdl_is_on_when_asked_for():
    with contract("flashinfer.sampling.softmax", Gives((9, 50), torch.float32)) as kernel:
        launch_of("softmax", "cuda", f"{SHAPE} --enable_pdl")[0]()
    assert kernel.call["enable_pdl"] is True


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_triton_kernels_get_the_same(dtype):
    """That they are right is tested where they can run: in Triton's interpreter, and on a GPU."""
    pytest.importorskip("triton")
    launch, problem = launch_of("softmax", "triton", f"{SHAPE} --temperature 0.7 --input_dtype {dtype}")
    given = inspect.signature(launch.fn).bind(**launch.kwargs).arguments
    assert given["logits"] is problem["logits"]
    assert given["temperature"] == 0.7
    assert (launch.returns, launch.scratch) == (("probs",), ("partials",))
    assert given["partials"].device == problem["logits"].device


# ---- Right kernels pass ----


@pytest.mark.parametrize("distribution", ["normal", "peaked", "uniform", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_torch_passes(name, dtype, distribution):
    for shape in ("--batch_size 7 --vocab_size 300", "--batch_size 1 --vocab_size 12"):
        flags = f"{shape} {ALL[name][2]} --input_dtype {dtype} --input_distribution {distribution}"
        assert_passes(run(name, flags, "torch"))


@pytest.mark.parametrize("temperature", [0.01, 100])
def test_softmax_at_the_ends_of_the_temperatures(temperature):
    for dtype in DTYPES:
        assert_passes(run("softmax", f"{SHAPE} --temperature {temperature} --input_dtype {dtype}", "torch"))


def wrong(name, kernel):
    """A kernel of the torch backend's keywords in its place."""

    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)
        return Launch(kernel, kwargs=launch.kwargs, returns=launch.returns)

    return prepare


def exactly_k(probs, top_k):
    values, places = probs.topk(top_k, dim=-1)
    kept = torch.zeros_like(probs).scatter_(-1, places, values).float()
    return (kept / kept.sum(dim=-1, keepdim=True)).to(probs.dtype)


def exactly_k_logits(logits, top_k):
    values, places = logits.topk(top_k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter_(-1, places, values)


@pytest.mark.parametrize(
    ("name", "kernel"), [("top_k_renorm_probs", exactly_k), ("top_k_mask_logits", exactly_k_logits)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_entries_may_be_told_apart(name, kernel, dtype):
    flags = f"{SHAPE} --top_k 12 --input_dtype {dtype} --input_distribution ties"
    assert_passes(run_broken(name, wrong(name, kernel), flags))


# ---- Wrong kernels are caught ----


def spoilt(name, spoil):
    kernel = {"softmax": eager.softmax, "top_k_renorm_probs": eager.renormalise_top_k,
              "top_p_renorm_probs": eager.renormalise_top_p, "top_k_mask_logits": eager.mask_top_k}[name]  # fmt: skip
    return lambda **given: spoil(kernel(**given))


def with_nan(output):
    output[-1, -1] = float("nan")
    return output


def without_the_last_row(output):
    output[-1] = 0
    return output


def without_the_smallest(output):
    dropped = float("-inf") if output.isinf().any() else 0.0
    smallest = torch.where(output == dropped, float("inf"), output).amin(dim=-1, keepdim=True)
    return torch.where(output == smallest, dropped, output)


SPOILT = {
    "zeros": torch.zeros_like,
    "uniform": lambda output: torch.full_like(output, 1 / 50),
    "one token off": lambda output: output.roll(1, dims=-1),
    "one row off": lambda output: output.roll(1, dims=0),
    "a thousandth more": lambda output: output * 1.001,
    "the smallest kept one dropped": without_the_smallest,
    "not a number": with_nan,
    "the last row missing": without_the_last_row,
    "a row short": lambda output: output[:-1],
    "a permutation": lambda output: output.sort(dim=-1).values,
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", ALL)
def test_a_spoilt_output_is_caught(name, how):
    flags = f"{SHAPE} {ALL[name][2]}"
    assert_caught(run_broken(name, wrong(name, spoilt(name, SPOILT[how])), flags))


OTHER = {
    "softmax": [{"temperature": 1.0}, {"temperature": 0.69}],
    "top_k_renorm_probs": [{"top_k": 50}, {"top_k": 11}, {"top_k": 13}],
    "top_p_renorm_probs": [{"top_p": 1.0}, {"top_p": 0.5}, {"top_p": 0.7}],
    "top_k_mask_logits": [{"top_k": 50}, {"top_k": 11}, {"top_k": 13}],
}


@pytest.mark.parametrize(("name", "changed"), [(name, change) for name in ALL for change in OTHER[name]])
def test_a_kernel_with_other_limits_is_caught(name, changed):
    kernel = spoilt(name, lambda output: output)
    flags = f"{SHAPE} {ALL[name][2]}"
    assert_caught(run_broken(name, wrong(name, lambda **given: kernel(**{**given, **changed})), flags))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_but_not_normalised_is_caught(dtype):
    kernel = wrong("top_k_renorm_probs", lambda probs, top_k: eager.keep_top_k(probs, top_k))
    assert_caught(run_broken("top_k_renorm_probs", kernel, f"{SHAPE} --top_k 40 --input_dtype {dtype}"))


def test_zeros_are_caught_where_every_probability_is_small():
    """An absolute tolerance would let them pass."""
    for name in ("softmax", "top_k_renorm_probs", "top_p_renorm_probs"):
        flags = "--batch_size 2 --vocab_size 20000 --top_k 20000 --top_p 0.99"
        assert_caught(run_broken(name, wrong(name, spoilt(name, torch.zeros_like)), flags))


# ---- The problem ----


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("softmax", "float32", 4 + 4),
        ("softmax", "bfloat16", 2 + 4),
        ("top_k_renorm_probs", "float16", 2 + 2),
        ("top_k_mask_logits", "bfloat16", 2 + 2),
        ("top_k_mask_logits", "float32", 4 + 4),
        ("top_p_renorm_probs", "float32", 4 + 4),
    ],
)
def test_work_is_reading_and_writing_a_number_each(name, dtype, size):
    _, problem = problem_of(name, f"{SHAPE} --top_k 7 --input_dtype {dtype}")
    assert problem.work == Work(flops=0, bytes=9 * 50 * size)


@pytest.mark.parametrize("name", ALL)
def test_shown_are_shape_and_format_and_what_filters(name):
    source, _, flags = ALL[name]
    _, problem = problem_of(name, f"{SHAPE} {flags}")
    expected = [f"{source}.shape = torch.Size([9, 50])", f"{source}.dtype = torch.float32"]
    expected += [] if name == "softmax" else [flags.removeprefix("--").replace(" ", " = ")]
    assert [line.text for line in problem.shown] == expected
