"""Draws a token from each row of probabilities, from among its k most probable."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.distribution import Distribution
from flashinfer_perf.core.requirement import capability, package
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.sampling import inputs, reference
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

SEED = 42
"""Of the timed draw; the kernel's time does not depend on it, and checks draw with seeds of their own."""


@routine(
    "top_k_sampling_from_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "top_k"),
    rules=(
        Rule(lambda case: case.top_k <= case.vocab_size, "top_k ({top_k}) must not exceed vocab_size ({vocab_size})"),
    ),
)
def top_k_sampling_from_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Top-K sampling from probabilities."""
    probs = inputs.probabilities(make, case.batch_size, case.vocab_size)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.top_k, top_k=case.top_k),
        work=Work(flops=0, bytes=case.batch_size * case.vocab_size * 4 + case.batch_size * 4),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=(Shown("probs.shape", probs.shape), Shown("probs.dtype", probs.dtype), Shown("top_k", case.top_k)),
    )


@top_k_sampling_from_probs.backend(
    "cuda",
    requires=(capability(minimum="7.5"), package("flashinfer", extra="flashinfer")),
    documented="7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's rejection sampler, which does not sort."""
    same = inputs.replicated(problem["probs"][0], case.batch_size)
    sample = flashinfer.sampling.top_k_sampling_from_probs
    return Launch(
        sample,
        kwargs={"probs": problem["probs"], "top_k": case.top_k, "seed": SEED, "offset": 0},
        returns=("samples",),
        draw=lambda seed, offset: sample(probs=same, top_k=case.top_k, seed=seed, offset=offset),
    )


@top_k_sampling_from_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk for the threshold, then torch.multinomial."""
    same = inputs.replicated(problem["probs"][0], case.batch_size)
    generator = torch.Generator(device=problem["probs"].device)
    return Launch(
        sample_top_k,
        kwargs={"probs": problem["probs"], "top_k": case.top_k, "seed": SEED, "generator": generator},
        returns=("samples",),
        draw=lambda seed, offset: sample_top_k(same, case.top_k, seed + offset, generator),
    )


def sample_top_k(probs: torch.Tensor, top_k: int, seed: int, generator: torch.Generator) -> torch.Tensor:
    """(batch,) int32 tokens of (batch, vocab) probabilities."""
    kth = probs.topk(top_k, dim=-1).values[:, -1:]
    kept = torch.where(probs >= kth, probs, torch.zeros_like(probs))
    return torch.multinomial(kept, 1, generator=generator.manual_seed(seed))[:, 0].to(torch.int32)
