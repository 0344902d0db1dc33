"""top_k and both transforms: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.sampling import eager
from flashinfer_perf.run.judge import judge
from flashinfer_perf.run.launch import Launch
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, routine_named, run, run_broken

TRANSFORMS = ("top_k_page_table_transform", "top_k_ragged_transform")
NAMES = ("top_k", *TRANSFORMS)
DTYPES = ("float32", "float16", "bfloat16")


def flags(name, rows=6, width=50, k=9):
    return f"--batch_size {rows} --{'vocab_size' if name == 'top_k' else 'max_len'} {width} --top_k {k}"


# ---- The calls of the library ----


@covers("top_k", "cuda")
def test_top_k_calls_flashinfer_as_it_declares():
    with contract("flashinfer.top_k", (Gives((6, 9), torch.float32), Gives((6, 9), torch.int64))) as kernel:
        launch, problem = launch_of("top_k", "cuda", flags("top_k"))
        found = launch.outputs(launch())
    assert kernel.call == {"input": problem["input"], "k": 9}
    assert set(found) == {"values", "indices"} == set(problem.checks)


@pytest.mark.parametrize("name", TRANSFORMS)
@covers("top_k_page_table_transform", "cuda")
@covers("top_k_ragged_transform", "cuda")
def test_transforms_call_flashinfer_as_it_declares(name):
    with contract(f"flashinfer.{name}", Gives((6, 9), torch.int32)) as kernel:
        launch, problem = launch_of(name, "cuda", flags(name))
        found = launch.outputs(launch())
    second = "src_page_table" if "page" in name else "offsets"
    assert kernel.call == {**{key: problem[key] for key in ("input", second, "lengths")}, "k": 9}
    assert problem[second].dtype is problem["lengths"].dtype is torch.int32
    assert set(found) == set(problem.checks)


# ---- Inputs ----


def test_a_page_tables_entries_tell_their_place():
    _, problem = problem_of("top_k_page_table_transform", flags("top_k_page_table_transform"))
    assert problem["src_page_table"].flatten().sort().values.tolist() == list(range(300))
    assert problem["lengths"].tolist() == [50] * 6


def test_offsets_are_those_of_rows_one_after_the_other():
    _, problem = problem_of("top_k_ragged_transform", f"{flags('top_k_ragged_transform')} --num_rows 4")
    assert problem["offsets"].tolist() == [0, 50, 100, 150]
    assert problem["input"].shape == (4, 50)


@pytest.mark.parametrize("rows", [1, 4, 11])
def test_a_ragged_transform_may_have_any_number_of_rows(rows):
    assert_passes(run("top_k_ragged_transform", f"{flags('top_k_ragged_transform')} --num_rows {rows}", "torch"))


def test_a_page_table_transform_may_have_fewer_rows_than_tables():
    name = "top_k_page_table_transform"
    assert_passes(run(name, f"{flags(name)} --num_rows 4", "torch"))


# ---- Right kernels pass ----


@pytest.mark.parametrize("distribution", ["normal", "peaked", "uniform", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_torch_passes(name, dtype, distribution):
    for shape in (flags(name), flags(name, 1, 1, 1), flags(name, 3, 400, 400)):
        assert_passes(run(name, f"{shape} --input_dtype {dtype} --input_distribution {distribution}", "torch"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_with_fewer_entries_than_k_are_padded(name):
    assert_passes(run(name, flags(name, 4, 5, 8), "torch"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_lengths_count(name):
    """Rows of any length; upstream's inputs have full ones only."""
    values, problem = problem_of(name, flags(name, 6, 50, 9))
    lengths = torch.tensor([0, 1, 8, 9, 10, 50], dtype=torch.int32)
    shorter = dataclasses.replace(problem, tensors={**problem.tensors, "lengths": lengths})
    truth = shorter.truth()
    launch = routine_named(name).backends["torch"].prepare(values, shorter)
    output = launch()
    assert (output == -1).sum(dim=-1).tolist() == [9, 8, 1, 0, 0, 0]
    assert all(finding.passed for finding in judge(shorter, launch.outputs(output), truth))
    for wrong in (problem["lengths"], (lengths - 1).clamp(min=0)):
        found = launch.fn(**{**launch.kwargs, "lengths": wrong})
        assert not all(finding.passed for finding in judge(shorter, launch.outputs(found), truth))


@pytest.mark.parametrize("name", NAMES)
def test_any_order_and_any_choice_among_equal_ones_is_right(name):
    def other_ones(input, **given):
        """The last of equal ones, in ascending order."""
        backwards = input.flip(-1)
        values, places = backwards.topk(given["k"], dim=-1)
        places = input.shape[1] - 1 - places.flip(-1)
        if name == "top_k":
            return values.flip(-1), places
        if "offsets" in given:
            return (places + given["offsets"][:, None]).to(torch.int32)
        return given["src_page_table"].gather(-1, places)

    prepare = wrong(name, lambda kernel: other_ones)
    assert_passes(run_broken(name, prepare, f"{flags(name)} --input_distribution ties"))


# ---- Wrong kernels are caught ----


def wrong(name, change):
    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)
        return Launch(change(launch.fn), kwargs=launch.kwargs, returns=launch.returns)

    return prepare


def spoilt(spoil):
    """The last output (positions) changed."""

    def change(kernel):
        def call(**given):
            result = kernel(**given)
            *values, positions = result if isinstance(result, tuple) else (result,)
            found = (*values, spoil(positions.clone()))
            return found if values else found[0]

        return call

    return change


def first_again(positions):
    positions[:, 1] = positions[:, 0]
    return positions


def one_missing(positions):
    positions[-1, -1] = -1
    return positions


def too_large(positions):
    positions[0, 0] = 1 << 30
    return positions


SPOILT = {
    "zeros": spoilt(torch.zeros_like),
    "minus ones": spoilt(lambda positions: torch.full_like(positions, -1)),
    "one off": spoilt(lambda positions: positions + 1),
    "one row off": spoilt(lambda positions: positions.roll(1, dims=0)),
    "one twice": spoilt(first_again),
    "one missing": spoilt(one_missing),
    "too large": spoilt(too_large),
    "a row short": spoilt(lambda positions: positions[:-1]),
    "a column short": spoilt(lambda positions: positions[:, :-1]),
    "the smallest": lambda kernel: lambda **given: kernel(**{**given, "input": -given["input"]}),
    "the first": lambda kernel: lambda **given: kernel(
        **{**given, "input": -torch.arange(50.0).expand_as(given["input"])}
    ),
    "without the largest": lambda kernel: lambda **given: kernel(**{**given, "input": given["input"].masked_fill(
        given["input"] == given["input"].amax(dim=-1, keepdim=True), float("-inf"))}),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_kernel_is_caught(name, how):
    assert_caught(run_broken(name, wrong(name, SPOILT[how]), flags(name)))


def values_changed(change):
    return lambda kernel: lambda input, k: (lambda values, indices: (change(values), indices))(*eager.top_k(input, k))


@pytest.mark.parametrize(
    "change", [torch.zeros_like, lambda values: values.roll(1, dims=-1), lambda values: values * 1.0001]
)
def test_values_that_are_not_those_of_the_indices_are_caught(change):
    assert_caught(run_broken("top_k", wrong("top_k", values_changed(change)), flags("top_k")))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_padding_with_zeros_is_caught(name):
    zeros = spoilt(lambda positions: positions.clamp(min=0))
    assert_caught(run_broken(name, wrong(name, zeros), flags(name, 4, 5, 8)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_bare_positions_are_caught(name):
    def call(input, k, **given):
        return input.topk(k, dim=-1).indices.to(torch.int32)

    assert_caught(run_broken(name, wrong(name, lambda kernel: call), flags(name)))


# ---- The problem ----


def test_work_by_the_documented_formulas():
    shape = "--input_dtype bfloat16 --num_rows 4"
    _, selected = problem_of("top_k", f"{flags('top_k')} --input_dtype bfloat16")
    assert selected.work == Work(flops=0, bytes=6 * 50 * 2 + 6 * 9 * 2 + 6 * 9 * 8)
    _, ragged = problem_of("top_k_ragged_transform", f"{flags('top_k_ragged_transform')} {shape}")
    assert ragged.work == Work(flops=0, bytes=4 * 50 * 2 + 4 * 9 * 4)


def test_of_a_page_table_only_what_is_looked_up_counts():
    name = "top_k_page_table_transform"
    _, problem = problem_of(name, flags(name))
    assert problem.work == Work(flops=0, bytes=6 * 50 * 4 + 6 * 9 * 4 + 6 * 9 * 4)
    _, short = problem_of(name, flags(name, 4, 5, 8))
    assert short.work.bytes == 4 * 5 * 4 + 4 * 5 * 4 + 4 * 8 * 4


def test_shown_are_the_documented_lines():
    _, selected = problem_of("top_k", flags("top_k"))
    assert [line.label for line in selected.shown] == ["input_tensor.shape", "input_tensor.dtype", "top_k"]
    for name, second in zip(TRANSFORMS, ("src_page_table", "offsets"), strict=True):
        _, problem = problem_of(name, flags(name))
        labels = ["input_scores.shape", "input_scores.dtype", f"{second}.shape", "lengths.shape", "top_k"]
        assert [line.label for line in problem.shown] == labels
