"""Keeps the k largest logits of each row; the others become -inf."""

from __future__ import annotations

from functools import partial
from math import inf

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
    "top_k_mask_logits",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "top_k", "input_distribution"),
    rules=(rules.TOP_K,),
)
def top_k_mask_logits(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Mask logits outside Top-K values."""
    shape = (case.batch_size, case.vocab_size)
    logits = inputs.logits(make, "logits", shape, case.input_dtype, case.input_distribution)
    return Problem(
        tensors={"logits": logits},
        reference=partial(reference.top_k_masked, k=case.top_k),
        work=work.filtered(case, case.input_dtype, case.input_dtype),
        checks={"masked_logits": Kept(tolerance.EXACT, dropped=-inf, normalised=False, at_least=case.top_k)},
        ranks=make.ranks,
        shown=inputs.shown("logits", logits, top_k=case.top_k),
    )


@top_k_mask_logits.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's radix kernel."""
    return Launch(
        flashinfer.sampling.top_k_mask_logits,
        kwargs={**problem.tensors, "top_k": case.top_k},
        returns=("masked_logits",),
    )


@top_k_mask_logits.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk for the threshold, and a comparison."""
    return Launch(eager.mask_top_k, kwargs={**problem.tensors, "top_k": case.top_k}, returns=("masked_logits",))
