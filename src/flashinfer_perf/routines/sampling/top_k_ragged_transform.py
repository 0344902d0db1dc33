"""Selects the k largest of each row, by their positions plus an offset of the row."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.selected import LargestPositions
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags, rows
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_k_ragged_transform",
    flags=SamplingFlags,
    uses=("batch_size", "input_dtype", "top_k", "max_len", "num_rows", "input_distribution"),
)
def top_k_ragged_transform(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Fused Top-K with ragged index transform."""
    tensors = inputs.scores(case, make, "indices")
    tensors["offsets"] = inputs.offsets(make, rows(case), case.max_len)
    more = {f"{name}.shape": tensors[name].shape for name in ("offsets", "lengths")}
    return Problem(
        tensors=tensors,
        reference=partial(reference.with_offsets, k=case.top_k),
        work=work.ragged_transform(case),
        checks={"indices": LargestPositions()},
        ranks=make.ranks,
        shown=inputs.shown("input_scores", tensors["input"], **more, top_k=case.top_k),
    )


@top_k_ragged_transform.backend("cuda", requires=backends.TRANSFORMS_NEED, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's choice of CUB's kernel and its own radix kernels."""
    return Launch(flashinfer.top_k_ragged_transform, kwargs={**problem.tensors, "k": case.top_k}, returns=("indices",))


@top_k_ragged_transform.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk, then an addition."""
    return Launch(eager.top_k_ragged_transform, kwargs={**problem.tensors, "k": case.top_k}, returns=("indices",))
