"""Keeps the k most probable of each row and divides them by their sum."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.kept import Kept
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, rules, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_k_renorm_probs",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "top_k", "input_distribution"),
    rules=(rules.TOP_K,),
)
def top_k_renorm_probs(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Renormalize probabilities after Top-K filtering."""
    shape = (case.batch_size, case.vocab_size)
    probs = inputs.probabilities(make, shape, case.input_distribution, dtype=case.input_dtype)
    return Problem(
        tensors={"probs": probs},
        reference=partial(reference.top_k_renormalised, k=case.top_k),
        work=work.filtered(case, case.input_dtype, case.input_dtype),
        checks={
            "renorm_probs": Kept(
                tolerance.for_rounding(case.input_dtype, reduction=case.vocab_size),
                dropped=0.0,
                normalised=True,
                at_least=case.top_k,
            )
        },
        ranks=make.ranks,
        shown=inputs.shown("probs", probs, top_k=case.top_k),
    )


@top_k_renorm_probs.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's radix kernel."""
    return Launch(
        flashinfer.sampling.top_k_renorm_probs,
        kwargs={**problem.tensors, "top_k": case.top_k},
        returns=("renorm_probs",),
    )


@top_k_renorm_probs.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk for the threshold, a sum and a division."""
    return Launch(eager.renormalise_top_k, kwargs={**problem.tensors, "top_k": case.top_k}, returns=("renorm_probs",))
