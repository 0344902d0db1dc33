"""Draws a token from the softmax of each row of logits."""

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
    "sampling_from_logits",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "input_distribution"),
)
def sampling_from_logits(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Sample token indices from logits (fused softmax + sampling)."""
    shape = (case.batch_size, case.vocab_size)
    logits = inputs.logits(make, "logits", shape, case.input_dtype, case.input_distribution)
    return Problem(
        tensors={"logits": logits},
        reference=reference.from_logits,
        work=work.sample(case, case.input_dtype),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown("logits", logits),
    )


@sampling_from_logits.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel: the largest of logit + Gumbel noise."""
    return launches.sampler(flashinfer.sampling.sampling_from_logits, problem)


@sampling_from_logits.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.softmax, then the largest of probability / exponential noise."""
    return launches.eager_sampler(eager.sample_from_logits, problem)
