"""The seven samplers: their calls, their checks, and samplers that those must find out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.sampling import eager, launches
from flashinfer_perf.run.launch import Launch
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.sampling import broken

FROM_PROBS = {
    "sampling_from_probs": (),
    "top_k_sampling_from_probs": ("top_k",),
    "top_p_sampling_from_probs": ("top_p",),
    "min_p_sampling_from_probs": ("min_p",),
    "top_k_top_p_sampling_from_probs": ("top_k", "top_p", "filter_apply_order"),
}
FROM_LOGITS = {
    "sampling_from_logits": (),
    "top_k_top_p_sampling_from_logits": ("top_k", "top_p", "filter_apply_order"),
}
READ = FROM_PROBS | FROM_LOGITS
EAGER = {
    "sampling_from_probs": eager.sample,
    "top_k_sampling_from_probs": eager.sample_top_k,
    "top_p_sampling_from_probs": eager.sample_top_p,
    "min_p_sampling_from_probs": eager.sample_min_p,
    "top_k_top_p_sampling_from_probs": eager.sample_top_k_top_p,
    "sampling_from_logits": eager.sample_from_logits,
    "top_k_top_p_sampling_from_logits": eager.sample_top_k_top_p_from_logits,
}
CASE = "--batch_size 1024 --vocab_size 40 --top_k 20 --top_p 0.7 --min_p 0.3"
SMALL = "--batch_size 5 --vocab_size 30 --top_k 7 --top_p 0.6 --min_p 0.2 --filter_apply_order joint"
VALUES = {"top_k": 7, "top_p": 0.6, "min_p": 0.2, "filter_apply_order": "joint"}


def flags(name: str, typed: str) -> str:
    """Those among the typed ones that a routine reads."""
    pairs = [pair.split() for pair in typed.split("--")[1:]]
    known = ("batch_size", "vocab_size", *READ[name], "input_distribution", "random_seed")
    known += ("input_dtype",) if name in FROM_LOGITS else ()
    return " ".join(f"--{key} {value}" for key, value in pairs if key in known)


# ---- The calls of the library ----


@pytest.mark.parametrize("name", READ)
@covers("sampling_from_probs", "cuda")
@covers("top_k_sampling_from_probs", "cuda")
@covers("top_p_sampling_from_probs", "cuda")
@covers("min_p_sampling_from_probs", "cuda")
@covers("top_k_top_p_sampling_from_probs", "cuda")
@covers("sampling_from_logits", "cuda")
@covers("top_k_top_p_sampling_from_logits", "cuda")
def test_cuda_calls_flashinfer_as_it_declares(name):
    source = "probs" if name in FROM_PROBS else "logits"
    with contract(f"flashinfer.sampling.{name}", Gives((5,), torch.int32)) as kernel:
        launch, problem = launch_of(name, "cuda", flags(name, SMALL))
        returned = launch()
        launch.draw(3, 11)
        launch.with_seed(8)
    timed, draw, again = kernel.calls
    assert set(timed) == set(draw) == {source, *READ[name], "seed", "offset"}
    assert timed[source] is problem[source] is again[source]
    assert (timed["seed"], timed["offset"], again["seed"]) == (launches.SEED, 0, 8)
    assert torch.equal(draw[source], problem[source][:1].expand(5, -1))
    assert draw[source].is_contiguous()
    assert (draw["seed"], draw["offset"]) == (3, 11)
    assert all(call[key] == VALUES[key] for call in kernel.calls for key in READ[name])
    assert launch.outputs(returned).keys() == problem.checks.keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FROM_LOGITS)
def test_logits_are_passed_in_their_own_format(name, dtype):
    with contract(f"flashinfer.sampling.{name}", Gives((4,), torch.int32)) as kernel:
        launch_of(name, "cuda", f"--batch_size 4 --vocab_size 60 --input_dtype {dtype}")[0]()
    assert kernel.call["logits"].dtype is getattr(torch, dtype)


@pytest.mark.parametrize("name", READ)
def test_cuda_passes_the_engine_with_a_right_sampler(name):
    def right(**given: Any):
        return EAGER[name](**given, generator=torch.Generator())

    with contract(f"flashinfer.sampling.{name}", right), unconditional(name, "cuda"):
        assert_passes(run(name, flags(name, CASE), "cuda"))


# ---- Right samplers pass ----


@pytest.mark.parametrize("distribution", ["normal", "peaked", "uniform", "ties"])
@pytest.mark.parametrize("shape", ["1024 --vocab_size 40 --top_k 20", "128 --vocab_size 700"])
@pytest.mark.parametrize("name", READ)
def test_torch_passes(name, shape, distribution):
    case = flags(name, f"--batch_size {shape} --input_distribution {distribution} --random_seed 7")
    assert_passes(run(name, case, "torch"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["joint", "top_k_first"])
def test_probabilities_may_be_rounded_as_the_library_rounds_them(order, dtype):
    """FlashInfer takes the softmax in the logits' format before it filters."""

    def rounded(kernel):
        def call(logits, top_k, top_p, filter_apply_order, **draw):
            probs = logits.softmax(dim=-1).float()
            return eager.sample_top_k_top_p(probs, top_k, top_p, filter_apply_order, **draw)

        return call

    name = "top_k_top_p_sampling_from_logits"
    for shape in ("--batch_size 200 --vocab_size 300 --top_k 100", "--batch_size 8 --vocab_size 20000 --top_k 15000"):
        case = f"{shape} --top_p 0.5 --input_dtype {dtype} --filter_apply_order {order}"
        assert_passes(run_broken(name, broken.wrong(name, rounded), case))


@pytest.mark.parametrize("name", ["top_k_sampling_from_probs", "top_k_top_p_sampling_from_probs"])
def test_equal_tokens_may_be_told_apart(name):
    """FlashInfer's fast path keeps exactly k, whichever of the equal ones these are."""

    def exactly_k(kernel):
        def call(probs, top_k, **given):
            values, places = probs.topk(top_k, dim=-1)
            kept = torch.zeros_like(probs).scatter_(-1, places, values)
            if "filter_apply_order" in given:
                kept = kept / kept.sum(dim=-1, keepdim=True)
            return kernel(probs=kept, top_k=top_k, **given)

        return call

    for seed in range(2):
        case = flags(name, f"{CASE} --input_distribution ties --random_seed {seed}")
        assert_passes(run_broken(name, broken.wrong(name, exactly_k), case))


# ---- Wrong samplers are caught ----


@pytest.mark.parametrize("how", broken.EVERYWHERE)
@pytest.mark.parametrize("name", READ)
def test_a_broken_sampler_is_caught(name, how):
    assert_caught(run_broken(name, broken.wrong(name, broken.EVERYWHERE[how]), flags(name, CASE)))


IGNORED = [
    ("top_k_sampling_from_probs", {"top_k": 40}),
    ("top_k_sampling_from_probs", {"top_k": 13}),
    ("top_k_sampling_from_probs", {"top_k": 11}),
    ("top_p_sampling_from_probs", {"top_p": 1.0}),
    ("top_p_sampling_from_probs", {"top_p": 0.76}),
    ("top_p_sampling_from_probs", {"top_p": 0.64}),
    ("min_p_sampling_from_probs", {"min_p": 0.0}),
    ("min_p_sampling_from_probs", {"min_p": 0.4}),
    ("top_k_top_p_sampling_from_probs", {"top_k": 40}),
    ("top_k_top_p_sampling_from_probs", {"top_p": 1.0}),
    ("top_k_top_p_sampling_from_probs", {"filter_apply_order": "joint"}),
    ("top_k_top_p_sampling_from_logits", {"top_k": 40}),
    ("top_k_top_p_sampling_from_logits", {"top_p": 1.0}),
    ("top_k_top_p_sampling_from_logits", {"filter_apply_order": "joint"}),
]


@pytest.mark.parametrize(("name", "changed"), IGNORED)
def test_a_sampler_that_takes_other_limits_is_caught(name, changed):
    case = CASE.replace("--top_k 20", "--top_k 12")  # so that top-p leaves others than without top-k
    assert_caught(run_broken(name, broken.wrong(name, broken.with_arguments(**changed)), flags(name, case)))


@pytest.mark.parametrize("how", ["unseeded", "always the largest", "always the same"])
def test_a_batch_of_one_is_enough_to_tell(how):
    name = "top_p_sampling_from_probs"
    case = flags(name, CASE.replace("1024", "1"))
    assert_caught(run_broken(name, broken.wrong(name, broken.EVERYWHERE[how]), case))


def test_a_sampler_whose_draws_nobody_can_check_does_not_pass():
    def prepare(case, problem):
        launch, _ = launch_of("sampling_from_probs", "torch", flags("sampling_from_probs", CASE))
        return Launch(launch.fn, kwargs={**launch.kwargs, **problem.tensors}, returns=("samples",))

    record = run_broken("sampling_from_probs", prepare, flags("sampling_from_probs", CASE))
    assert_caught(record)
    assert "draw" in record.reason


# ---- The problem ----


@pytest.mark.parametrize(("name", "dtype", "size"), [
    *[(name, "float32", 4) for name in READ],
    *[(name, "bfloat16", 2) for name in FROM_LOGITS],
])  # fmt: skip
def test_work_is_reading_the_input_and_writing_the_tokens(name, dtype, size):
    _, problem = problem_of(name, flags(name, f"{SMALL} --input_dtype {dtype}"))
    assert problem.work == Work(flops=0, bytes=5 * 30 * size + 5 * 4)


@pytest.mark.parametrize("name", READ)
def test_shown_are_shape_and_format_and_what_filters(name):
    _, problem = problem_of(name, flags(name, SMALL))
    source = "probs" if name in FROM_PROBS else "logits"
    expected = [f"{source}.shape = torch.Size([5, 30])", f"{source}.dtype = torch.float32"]
    expected += [f"{key} = {VALUES[key]!r}" for key in READ[name]]
    assert [line.text for line in problem.shown] == expected


@pytest.mark.parametrize("name", READ)
def test_torch_cannot_be_captured_and_says_why(name):
    launch, _ = launch_of(name, "torch", flags(name, SMALL))
    assert launch.no_graph == eager.NO_GRAPH
