"""Selects the k largest of each row: their values and where they are, in any order."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.selected import LargestPositions, LargestValues
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, rules, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_k",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "top_k", "input_distribution"),
    rules=(rules.TOP_K,),
)
def top_k(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Radix-based Top-K selection."""
    shape = (case.batch_size, case.vocab_size)
    tensor = inputs.logits(make, "input", shape, case.input_dtype, case.input_distribution)
    return Problem(
        tensors={"input": tensor},
        reference=partial(reference.largest, k=case.top_k),
        work=work.top_k(case),
        checks={"values": LargestValues(), "indices": LargestPositions(values="values")},
        ranks=make.ranks,
        shown=inputs.shown("input_tensor", tensor, top_k=case.top_k),
    )


@top_k.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's choice of CUB's kernel and its own radix kernels."""
    return Launch(flashinfer.top_k, kwargs={**problem.tensors, "k": case.top_k}, returns=("values", "indices"))


@top_k.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk, unsorted."""
    return Launch(eager.top_k, kwargs={**problem.tensors, "k": case.top_k}, returns=("values", "indices"))
