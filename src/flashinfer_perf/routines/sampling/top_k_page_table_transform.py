"""Selects the k largest of each row, by their entries in a page table."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.selected import LargestPositions
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, rules, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "top_k_page_table_transform",
    flags=SamplingFlags,
    uses=("batch_size", "input_dtype", "top_k", "max_len", "num_rows", "input_distribution"),
    rules=(rules.A_TABLE_TO_A_ROW,),
)
def top_k_page_table_transform(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Fused Top-K with page table lookup."""
    tensors = inputs.scores(case, make, "page_table")
    tensors["src_page_table"] = inputs.page_table(make, case.batch_size, case.max_len)
    more = {f"{name}.shape": tensors[name].shape for name in ("src_page_table", "lengths")}
    return Problem(
        tensors=tensors,
        reference=partial(reference.through_tables, k=case.top_k),
        work=work.page_table_transform(case),
        checks={"page_table": LargestPositions()},
        ranks=make.ranks,
        shown=inputs.shown("input_scores", tensors["input"], **more, top_k=case.top_k),
    )


@top_k_page_table_transform.backend("cuda", requires=backends.TRANSFORMS_NEED, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's choice of CUB's kernel and its own radix kernels."""
    return Launch(
        flashinfer.top_k_page_table_transform, kwargs={**problem.tensors, "k": case.top_k}, returns=("page_table",)
    )


@top_k_page_table_transform.backend("torch")
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """torch.topk, then a lookup."""
    return Launch(
        eager.top_k_page_table_transform, kwargs={**problem.tensors, "k": case.top_k}, returns=("page_table",)
    )
