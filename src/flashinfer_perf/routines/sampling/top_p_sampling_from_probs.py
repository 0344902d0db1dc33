"""Draws a token from each row of probabilities, from among the most probable that have a mass of p."""

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
    "top_p_sampling_from_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "top_p", "input_distribution"),
    rules=(rules.TOP_P,),
)
def top_p_sampling_from_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Top-P (nucleus) sampling from probabilities."""
    probs = inputs.probabilities(make, (case.batch_size, case.vocab_size), case.input_distribution)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.top_p_from_probs, p=case.top_p),
        work=work.sample(case),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown("probs", probs, top_p=case.top_p),
    )


@top_p_sampling_from_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's rejection sampler, which does not sort."""
    return launches.sampler(flashinfer.sampling.top_p_sampling_from_probs, problem, top_p=case.top_p)


@top_p_sampling_from_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.sort and a cumulated sum for the threshold, then a draw from what is left."""
    return launches.eager_sampler(eager.sample_top_p, problem, top_p=case.top_p)
