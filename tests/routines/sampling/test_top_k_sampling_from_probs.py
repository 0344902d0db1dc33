"""top_k_sampling_from_probs: its call, its checks, and samplers that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.sampling.inputs import replicated
from flashinfer_perf.routines.sampling.top_k_sampling_from_probs import sample_top_k
from flashinfer_perf.run.launch import Launch
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional

NAME = "top_k_sampling_from_probs"
API = "flashinfer.sampling.top_k_sampling_from_probs"
CASE = "--batch_size 64 --vocab_size 40 --top_k 20"


# ---- The call of the library ----


@covers(NAME, "cuda")
def test_cuda_calls_flashinfer_as_it_declares():
    with contract(API, Gives((5,), torch.int32)) as kernel:
        launch, problem = launch_of(NAME, "cuda", "--batch_size 5 --vocab_size 30 --top_k 7")
        returned = launch()
        drawn = launch.draw(3, 11)
    timed, draw = kernel.calls
    assert set(timed) == set(draw) == {"probs", "top_k", "seed", "offset"}
    assert timed["probs"] is problem["probs"]
    assert timed["probs"].dtype is torch.float32
    assert (timed["top_k"], timed["offset"]) == (7, 0)
    assert isinstance(timed["seed"], int)
    assert torch.equal(draw["probs"], problem["probs"][0].expand(5, -1))
    assert (draw["top_k"], draw["seed"], draw["offset"]) == (7, 3, 11)
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert drawn.shape == (5,)


def test_cuda_passes_the_engine_with_a_right_sampler():
    def sampler(probs, top_k, seed, offset):
        return sample_top_k(probs, top_k, seed + offset, torch.Generator())

    with contract(API, sampler), unconditional(NAME, "cuda"):
        assert_passes(run(NAME, CASE, "cuda"))


# ---- Right samplers pass ----


@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --vocab_size 1 --top_k 1",
        "--batch_size 1 --vocab_size 50 --top_k 1",
        "--batch_size 1 --vocab_size 50 --top_k 50",
        "--batch_size 3 --vocab_size 7 --top_k 2",
        "--batch_size 17 --vocab_size 1001 --top_k 1001",
        "--batch_size 300 --vocab_size 129 --top_k 64",
        "--batch_size 16 --vocab_size 32000",
        "--batch_size 2000 --vocab_size 10 --top_k 9",
    ],
)
@pytest.mark.parametrize("seed", [0, 42])
def test_torch_passes(flags, seed):
    assert_passes(run(NAME, f"{flags} --random_seed {seed}", "torch"))


def test_more_tokens_than_the_vocabulary_are_invalid():
    from flashinfer_perf.core.errors import InvalidInput

    with pytest.raises(InvalidInput, match=r"top_k \(11\) must not exceed vocab_size \(10\)"):
        problem_of(NAME, "--batch_size 1 --vocab_size 10 --top_k 11")


# ---- Wrong samplers are caught ----


def launch_with(case, problem, sample):
    """``sample(probs, top_k, seed)`` as a backend: the timed call and the draws of the check are the same code."""
    probs, same = problem["probs"], replicated(problem["probs"][0], case.batch_size)
    return Launch(
        sample,
        kwargs={"probs": probs, "top_k": case.top_k, "seed": 42},
        returns=("samples",),
        draw=lambda seed, offset: sample(same, case.top_k, seed + offset),
    )


def right(probs, top_k, seed):
    return sample_top_k(probs, top_k, seed, torch.Generator())


def zeros(probs, top_k, seed):
    return torch.zeros(len(probs), dtype=torch.int32)


def ignores_top_k(probs, top_k, seed):
    return right(probs, probs.shape[1], seed)


def one_token_too_many(probs, top_k, seed):
    return right(probs, top_k + 1, seed)


def one_token_too_few(probs, top_k, seed):
    return right(probs, top_k - 1, seed)


def one_token_off(probs, top_k, seed):
    return right(probs, top_k, seed) + 1


def one_row_off(probs, top_k, seed):
    return right(probs, top_k, seed).roll(1)


def of_the_first_row(probs, top_k, seed):
    return right(replicated(probs[0], len(probs)), top_k, seed)


def always_the_largest(probs, top_k, seed):
    return probs.argmax(dim=-1).to(torch.int32)


def uniform_over_the_support(probs, top_k, seed):
    kth = probs.topk(top_k, dim=-1).values[:, -1:]
    return right((probs >= kth).float(), top_k, seed)


def not_normalised_after_the_cut(probs, top_k, seed):
    """What the cut tokens had goes to the largest."""
    largest = probs.argmax(dim=-1).to(torch.int32)
    drawn = right(probs, probs.shape[1], seed)
    kth = probs.topk(top_k, dim=-1).values[:, -1]
    return torch.where(probs.gather(1, drawn[:, None].long())[:, 0] >= kth, drawn, largest)


def tempered(probs, top_k, seed):
    return right(probs**2, top_k, seed)


def constant(probs, top_k, seed):
    """One possible token for every row, whatever the seed."""
    return probs.topk(top_k, dim=-1).indices[:, -1].to(torch.int32)


def unseeded(probs, top_k, seed):
    """Draws well, but always the same."""
    return right(probs, top_k, 0)


def the_same_for_all_rows(probs, top_k, seed):
    """Every row takes the same random number: rows of one call are not independent."""
    generator = torch.Generator().manual_seed(seed)
    kth = probs.topk(top_k, dim=-1).values[:, -1:]
    cumulated = torch.where(probs >= kth, probs, torch.zeros_like(probs)).cumsum(dim=-1)
    wanted = torch.rand(1, generator=generator) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].to(torch.int32)


def out_of_range(probs, top_k, seed):
    tokens = right(probs, top_k, seed)
    tokens[-1] = probs.shape[1]
    return tokens


def negative(probs, top_k, seed):
    return right(probs, top_k, seed) - probs.shape[1]


def not_a_number(probs, top_k, seed):
    tokens = right(probs, top_k, seed).float()
    tokens[0] = float("nan")
    return tokens


def a_row_short(probs, top_k, seed):
    return right(probs, top_k, seed)[:-1]


def changes_its_input(probs, top_k, seed):
    tokens = right(probs, top_k, seed)
    probs[-1, -1] *= 2
    return tokens


BROKEN = [
    zeros, ignores_top_k, one_token_too_many, one_token_too_few, one_token_off, one_row_off, of_the_first_row,
    always_the_largest, uniform_over_the_support, not_normalised_after_the_cut, tempered, constant, unseeded,
    the_same_for_all_rows, out_of_range, negative, not_a_number, a_row_short, changes_its_input,
]  # fmt: skip


@pytest.mark.parametrize("sample", BROKEN, ids=lambda sample: sample.__name__)
def test_a_broken_sampler_is_caught(sample):
    assert_caught(run_broken(NAME, lambda case, problem: launch_with(case, problem, sample), CASE))


@pytest.mark.parametrize("sample", [constant, unseeded, always_the_largest], ids=lambda sample: sample.__name__)
def test_a_batch_of_one_is_enough_to_tell(sample):
    flags = "--batch_size 1 --vocab_size 40 --top_k 20"
    assert_caught(run_broken(NAME, lambda case, problem: launch_with(case, problem, sample), flags))


def test_a_sampler_whose_draws_nobody_can_check_does_not_pass():
    def prepare(case, problem):
        return Launch(right, kwargs={"probs": problem["probs"], "top_k": case.top_k, "seed": 1}, returns=("samples",))

    record = run_broken(NAME, prepare, CASE)
    assert_caught(record)
    assert "draw" in record.reason


# ---- The problem ----


def test_work_is_reading_the_probabilities_and_writing_the_tokens():
    _, problem = problem_of(NAME, "--batch_size 5 --vocab_size 30 --top_k 7")
    assert problem.work == Work(flops=0, bytes=5 * 30 * 4 + 5 * 4)
