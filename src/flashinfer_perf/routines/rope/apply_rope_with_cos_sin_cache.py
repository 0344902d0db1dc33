"""RoPE by a cache of cosines and sines, of heads that lie side by side in (tokens, heads * head_dim)."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.rope import backends, calls, eager, inputs, reference, work
from flashinfer_perf.routines.rope.flags import WHOLE_PAIRS, RopeFlags, rotated
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

ROTATED = ("query_out", "key_out")


@routine("apply_rope_with_cos_sin_cache", flags=RopeFlags, uses=(*calls.SHAPE, "interleave"), rules=WHOLE_PAIRS)
def apply_rope_with_cos_sin_cache(case: RopeFlags, make: TensorFactory) -> Problem:
    """Apply RoPE with precomputed cos/sin cache."""
    q, k = (tensor.flatten(1) for tensor in inputs.query_and_key(case, make).values())
    cache = inputs.cos_sin_cache(case, make, rotated(case))
    positions = inputs.positions(case, make).long()
    shown = {"q": q, "k": k, "cos_sin_cache": cache, "positions": positions}
    return Problem(
        tensors={"query": q, "key": k, "cos_sin_cache": cache, "positions": positions},
        reference=partial(reference.by_cache, heads=inputs.heads_of(case)),
        work=work.by_cache(case),
        checks=inputs.checks(case, make, ROTATED),
        ranks=make.ranks,
        shown=(*inputs.shapes(shown), *inputs.values(is_neox=not case.interleave)),
    )


@apply_rope_with_cos_sin_cache.backend("cuda", requires=backends.ROTATES_BY_CACHE, documented=backends.EVERYWHERE)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    kwargs = {**problem.tensors, "head_size": case.head_dim, "is_neox": not case.interleave}
    return Launch(flashinfer.rope.apply_rope_with_cos_sin_cache, kwargs=kwargs, returns=ROTATED)


@apply_rope_with_cos_sin_cache.backend("torch")
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    kwargs = {**problem.tensors, "head_size": case.head_dim, "is_neox": not case.interleave}
    return Launch(eager.apply_rope_with_cos_sin_cache, kwargs=kwargs, returns=ROTATED)
