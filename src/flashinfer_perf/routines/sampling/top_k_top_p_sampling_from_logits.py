"""Draws a token from the softmax of each row of logits, filtered by number and by mass."""

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
    "top_k_top_p_sampling_from_logits",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "top_k", "top_p", "filter_apply_order", "input_distribution"),
    rules=(
        rules.TOP_K,
        rules.TOP_P,
    ),
)
def top_k_top_p_sampling_from_logits(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Combined Top-K and Top-P sampling from logits."""
    shape = (case.batch_size, case.vocab_size)
    logits = inputs.logits(make, "logits", shape, case.input_dtype, case.input_distribution)
    return Problem(
        tensors={"logits": logits},
        reference=partial(
            reference.top_k_top_p_from_logits,
            k=case.top_k,
            p=case.top_p,
            order=case.filter_apply_order,
            dtype=case.input_dtype,
        ),
        work=work.sample(case, case.input_dtype),
        checks={"samples": Distribution()},
        ranks=make.ranks,
        shown=inputs.shown(
            "logits", logits, top_k=case.top_k, top_p=case.top_p, filter_apply_order=case.filter_apply_order
        ),
    )


@top_k_top_p_sampling_from_logits.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernels: a filter, torch.softmax and a sampler, one after the other."""
    return launches.sampler(
        flashinfer.sampling.top_k_top_p_sampling_from_logits,
        problem,
        top_k=case.top_k,
        top_p=case.top_p,
        filter_apply_order=case.filter_apply_order,
    )


@top_k_top_p_sampling_from_logits.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.softmax, torch.topk, torch.sort and a cumulated sum, then a draw from what is left."""
    return launches.eager_sampler(
        eager.sample_top_k_top_p_from_logits,
        problem,
        top_k=case.top_k,
        top_p=case.top_p,
        filter_apply_order=case.filter_apply_order,
    )
