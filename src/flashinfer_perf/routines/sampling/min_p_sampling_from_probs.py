"""Draws a token from each row of probabilities, from among those not much less probable than the most probable."""

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
    "min_p_sampling_from_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "min_p", "input_distribution"),
    rules=(rules.MIN_P,),
)
def min_p_sampling_from_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Min-P sampling from probabilities."""
    probs = inputs.probabilities(make, (case.batch_size, case.vocab_size), case.input_distribution)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.min_p_from_probs, share=case.min_p),
        work=work.sample(case),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown("probs", probs, min_p=case.min_p),
    )


@min_p_sampling_from_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel."""
    return launches.sampler(flashinfer.sampling.min_p_sampling_from_probs, problem, min_p=case.min_p)


@min_p_sampling_from_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """A comparison with a share of the largest, then a draw from what is left."""
    return launches.eager_sampler(eager.sample_min_p, problem, min_p=case.min_p)
