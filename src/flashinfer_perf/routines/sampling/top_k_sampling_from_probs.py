"""Draws a token from each row of probabilities, from among its k most probable."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.distribution import Distribution
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, launches, reference, rules, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_k_sampling_from_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "top_k", "input_distribution"),
    rules=(rules.TOP_K,),
)
def top_k_sampling_from_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Top-K sampling from probabilities."""
    probs = inputs.probabilities(make, (case.batch_size, case.vocab_size), case.input_distribution)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.top_k_from_probs, k=case.top_k),
        work=work.sample(case),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown("probs", probs, top_k=case.top_k),
    )


@top_k_sampling_from_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's rejection sampler, which does not sort."""
    return launches.sampler(flashinfer.sampling.top_k_sampling_from_probs, problem, top_k=case.top_k)


@top_k_sampling_from_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk for the threshold, then a draw from what is left."""
    return launches.eager_sampler(eager.sample_top_k, problem, top_k=case.top_k)
