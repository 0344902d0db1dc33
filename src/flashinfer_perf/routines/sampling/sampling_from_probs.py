"""Draws a token from each row of probabilities."""

from __future__ import annotations

from flashinfer_perf.checks.distribution import Distribution
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, launches, reference, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "sampling_from_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_distribution"),
)
def sampling_from_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Sample token indices from probability distributions."""
    probs = inputs.probabilities(make, (case.batch_size, case.vocab_size), case.input_distribution)
    return Problem(
        tensors={"probs": probs},
        reference=reference.from_probs,
        work=work.sample(case),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown("probs", probs),
    )


@sampling_from_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel: the first token at which the sum exceeds a random number."""
    return launches.sampler(flashinfer.sampling.sampling_from_probs, problem)


@sampling_from_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """PyTorch: the largest of probability / exponential noise."""
    return launches.eager_sampler(eager.sample, problem)
