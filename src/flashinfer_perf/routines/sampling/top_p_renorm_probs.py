"""Keeps the most probable of each row up to a mass, and divides them by their sum."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.kept import Kept
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, rules, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_p_renorm_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "top_p", "input_distribution"),
    rules=(rules.TOP_P,),
)
def top_p_renorm_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Renormalize probabilities after Top-P filtering."""
    shape = (case.batch_size, case.vocab_size)
    probs = inputs.probabilities(make, shape, case.input_distribution)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.top_p_renormalised, p=case.top_p),
        work=work.filtered(case, DType.FLOAT32, DType.FLOAT32),
        checks={
            "renorm_probs": Kept(
                tolerance.for_rounding(DType.FLOAT32, reduction=case.vocab_size), dropped=0.0, normalised=True
            )
        },
        ranks=make.ranks,
        shown=inputs.shown("probs", probs, top_p=case.top_p),
    )


@top_p_renorm_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernels, and the workspace that they allocate in every call."""
    return Launch(
        flashinfer.sampling.top_p_renorm_probs,
        kwargs={**problem.tensors, "top_p": case.top_p},
        returns=("renorm_probs",),
    )


@top_p_renorm_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.sort and a cumulated sum for the threshold, a sum and a division."""
    return Launch(eager.renormalise_top_p, kwargs={**problem.tensors, "top_p": case.top_p}, returns=("renorm_probs",))
