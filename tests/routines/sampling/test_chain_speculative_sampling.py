"""chain_speculative_sampling: its call, its laws, and chains that the checks must find out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashinfer_perf.checks.speculative import Chains, emitted_of
from flashinfer_perf.routines.sampling import eager, launches, reference
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.sampling import broken

NAME = "chain_speculative_sampling"
API = f"flashinfer.sampling.{NAME}"
CASE = "--batch_size 256 --vocab_size 40 --num_speculate_tokens 3 --random_seed 3"


# ---- The call of the library ----


@covers(NAME, "cuda")
def test_cuda_calls_flashinfer_as_it_declares():
    gives = (Gives((5, 4), torch.int32), Gives((5,), torch.int32), Gives((5,), torch.int32))
    with contract(API, lambda **given: tuple(torch.zeros(g.shape, dtype=g.dtype) for g in gives)) as kernel:
        launch, problem = launch_of(NAME, "cuda", "--batch_size 5 --vocab_size 30 --num_speculate_tokens 3")
        kernel_promises_a_tensor(kernel)
        returned = launch()
        launch.draw(3, 11)
    timed, draw = kernel.calls
    names = {"draft_probs", "draft_token_ids", "target_probs"}
    assert set(timed) == set(draw) == {*names, "seed", "offset"}
    assert all(timed[name] is problem[name] for name in names)
    assert timed["draft_token_ids"].dtype is torch.int32
    assert [tuple(timed[name].shape) for name in sorted(names)] == [(5, 3, 30), (5, 3), (5, 4, 30)]
    assert (timed["seed"], timed["offset"], draw["seed"], draw["offset"]) == (launches.SEED, 0, 3, 11)
    assert all(torch.equal(draw[name], problem[name][:1].expand_as(problem[name])) for name in names)
    assert launch.outputs(returned).keys() == problem.checks.keys()


def kernel_promises_a_tensor(kernel: Any) -> None:
    """The library's annotation says one tensor; it returns three, as its documentation says."""
    assert kernel._declaration.hints["return"] is torch.Tensor
    kernel._declaration.hints["return"] = tuple


def test_cuda_passes_the_engine_with_a_right_kernel():
    def right(**given: Any):
        return eager.speculate(**given, generator=torch.Generator())

    with contract(API, right) as kernel, unconditional(NAME, "cuda"):
        kernel_promises_a_tensor(kernel)
        assert_passes(run(NAME, CASE, "cuda"))


# ---- Right chains pass ----


@pytest.mark.parametrize("distribution", ["normal", "peaked", "uniform", "ties"])
@pytest.mark.parametrize("shape", ["256 --vocab_size 40", "8 --vocab_size 200", "64 --vocab_size 2"])
def test_torch_passes(shape, distribution):
    assert_passes(run(NAME, f"--batch_size {shape} --input_distribution {distribution}", "torch"))


def counts_as_flashinfer_does(kernel):
    """Tokens from the first rejected one on are tried a second time."""

    def call(draft_probs, draft_token_ids, target_probs, **draw):
        given = {"draft_probs": draft_probs, "draft_token_ids": draft_token_ids, "target_probs": target_probs}
        tokens, _, emitted = kernel(**given, **draw)
        accept = reference.acceptance(**given)
        again = torch.rand(accept.shape, generator=torch.Generator().manual_seed(draw["seed"] + 99)) < accept
        later = torch.arange(accept.shape[1]) >= emitted[:, None]
        return tokens, (emitted + (again & later).sum(dim=-1)).to(torch.int32), emitted

    return call


def test_a_count_of_accepted_tokens_may_be_flashinfers():
    assert_passes(run_broken(NAME, broken.wrong(NAME, counts_as_flashinfer_does), CASE))


# ---- Wrong chains are caught ----


def with_inputs(change):
    return lambda kernel: lambda **given: kernel(**{**given, **change(given)})


def spoilt(spoil):
    def change(kernel):
        def call(**given):
            return spoil(given, *(part.clone() for part in kernel(**given)))

        return call

    return change


def rolled(name):
    return with_inputs(lambda given: {name: given[name].roll(1, dims=0)})


def all_accepted(given, tokens, accepted, emitted):
    length = given["draft_token_ids"].shape[1]
    last = given["target_probs"][:, -1].argmax(dim=-1)[:, None].to(torch.int32)
    full = torch.full_like(emitted, length)
    return torch.cat([given["draft_token_ids"], last], dim=-1), full, full


def last_token(change):
    """Something else in place of the token that follows."""

    def spoil(given, tokens, accepted, emitted):
        place = emitted[:, None].to(torch.int64)
        return tokens.scatter(-1, place, change(given, tokens.gather(-1, place), place)), accepted, emitted

    return spoilt(spoil)


def largest_that_follows(given, token, place):
    weights = eager._following(given["draft_probs"], given["target_probs"], place)
    return weights.argmax(dim=-1, keepdim=True).to(torch.int32)


def from_target(given, token, place):
    rows = torch.arange(len(place))
    chance = torch.Generator().manual_seed(given["seed"])
    return torch.multinomial(given["target_probs"][rows, place[:, 0]], 1, generator=chance).to(torch.int32)


def sometimes_the_largest(given, token, place):
    chance = torch.rand(token.shape, generator=torch.Generator().manual_seed(given["seed"] + 5)) < 0.1
    return torch.where(chance, largest_that_follows(given, token, place), token)


def counts(change):
    return spoilt(lambda given, tokens, accepted, emitted: (tokens, *change(accepted, emitted)))


BROKEN = {
    "zeros": spoilt(lambda given, *parts: tuple(torch.zeros_like(part) for part in parts)),
    "minus ones": spoilt(lambda given, *parts: tuple(torch.full_like(part, -1) for part in parts)),
    "other draft probabilities": rolled("draft_probs"),
    "other target probabilities": rolled("target_probs"),
    "other draft tokens": rolled("draft_token_ids"),
    "rows exchanged": spoilt(lambda given, *parts: tuple(part.roll(1, dims=0) for part in parts)),
    "all accepted": spoilt(all_accepted),
    "draft probabilities ignored": with_inputs(lambda given: {"draft_probs": torch.ones_like(given["draft_probs"])}),
    "too often accepted": with_inputs(lambda given: {"draft_probs": given["draft_probs"] * 0.8}),
    "too seldom accepted": with_inputs(lambda given: {"draft_probs": given["draft_probs"] * 1.2}),
    "draft and target exchanged": with_inputs(
        lambda given: {"draft_probs": given["target_probs"][:, :-1], "target_probs": torch.cat(
            [given["draft_probs"], given["target_probs"][:, -1:]], dim=1)}),
    "the largest follows": last_token(largest_that_follows),
    "10 % biased": last_token(sometimes_the_largest),
    "the next token follows": last_token(lambda given, token, place: (token + 1) % given["target_probs"].shape[-1]),
    "follows from the target": last_token(from_target),
    "out of range": last_token(lambda given, token, place: token + given["target_probs"].shape[-1]),
    "no padding": spoilt(lambda given, tokens, *rest: (tokens.clamp(min=0), *rest)),
    "emitted off by one": counts(lambda accepted, emitted: (accepted, emitted + 1)),
    "accepted off by one": counts(lambda accepted, emitted: (accepted + 1, emitted)),
    "accepted is emitted": counts(lambda accepted, emitted: (emitted, emitted)),
    "accepted is all": counts(lambda accepted, emitted: (torch.full_like(accepted, 3), emitted)),
    "a row short": spoilt(lambda given, *parts: tuple(part[:-1] for part in parts)),
    "unseeded": broken.unseeded,
    "random": broken.random,
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_kernel_is_caught(how):
    assert_caught(run_broken(NAME, broken.wrong(NAME, BROKEN[how]), CASE))


# ---- Laws ----


def truth_of(**tensors: torch.Tensor) -> Chains:
    return reference.chains(**tensors)["output_token_ids"]


def test_tokens_drawn_from_the_draft_are_followed_by_the_target_whatever_the_draft():
    """Leviathan et al., appendix A.1: the first token is distributed as the target says."""
    generator = torch.Generator().manual_seed(0)
    draft, target = (torch.rand(1, n, 6, dtype=torch.float64, generator=generator) for n in (1, 2))
    draft, target = draft / draft.sum(-1, keepdim=True), target / target.sum(-1, keepdim=True)
    first = torch.zeros(6, dtype=torch.float64)
    for token in range(6):
        truth = truth_of(draft_probs=draft, draft_token_ids=torch.tensor([[token]]), target_probs=target)
        none, all_ = truth.emitted_laws()[0].tolist()
        first += draft[0, 0, token] * (none * truth.extra[0])
        first[token] += draft[0, 0, token] * all_
    torch.testing.assert_close(first, target[0, 0])


def test_a_draft_token_is_accepted_by_the_ratio_of_its_probabilities():
    draft = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]])
    target = torch.tensor([[[0.25, 0.75, 0.0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5]]])
    for ids, expected in (([0, 0], [0.5, 0]), ([1, 1], [1, 2 / 3]), ([2, 2], [0, 1])):
        given = {"draft_probs": draft, "draft_token_ids": torch.tensor([ids]), "target_probs": target}
        assert reference.acceptance(**given)[0].tolist() == pytest.approx(expected)


def test_laws_are_those_of_a_chain():
    accept = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    truth = Chains(torch.zeros(1, 2, dtype=torch.int64), accept, torch.ones(1, 3, 2).bool(), torch.full((3, 2), 0.5))
    assert truth.emitted_laws()[0].tolist() == [0.5, 0.375, 0.125]
    assert [float(mean[0]) for mean in truth.accepted_means()] == [0.75, 0.5 * 0.75 + 0.375 * 1.25 + 0.125 * 2]
    assert truth.likeliest() == 0.25


def test_emitted_are_all_but_the_last_token():
    assert emitted_of(torch.tensor([[4, -1, -1], [1, 2, -1], [1, 2, 3], [-1, -1, -1]])).tolist() == [0, 1, 2, -1]


# ---- The problem ----


def test_work_is_what_a_chain_has_to_read():
    """A sequence that is rejected reads a row of each model's probabilities, another one of the target's alone."""
    _, problem = problem_of(NAME, "--batch_size 5 --vocab_size 1000 --num_speculate_tokens 3")
    accepted = float(reference.acceptance(**problem.tensors).prod(dim=-1).sum())
    assert 0 < accepted < 5
    rows = (2 * 5 - accepted) * 1000 * 4
    assert problem.work.bytes == pytest.approx(rows + 5 * 3 * (4 + 8) + 5 * 4 * 4 + 5 * 2 * 4)
    upstreams = 5 * (3 + 4) * 1000 * 4
    assert problem.work.bytes < upstreams / 2


def test_shown_are_shapes_and_the_number_of_tokens():
    _, problem = problem_of(NAME, "--batch_size 5 --vocab_size 30 --num_speculate_tokens 3")
    assert [line.text for line in problem.shown] == [
        "draft_probs.shape = torch.Size([5, 3, 30])",
        "draft_token_ids.shape = torch.Size([5, 3])",
        "target_probs.shape = torch.Size([5, 4, 30])",
        "num_speculate_tokens = 3",
    ]
