"""RoPE, the position of each token given."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.rope import backends, calls, eager, inputs, reference, work
from flashinfer_perf.routines.rope.flags import WHOLE_PAIRS, RopeFlags
from flashinfer_perf.routines.rope.frequencies import frequencies
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "apply_rope_pos_ids",
    flags=RopeFlags,
    uses=calls.FLAGS,
    rules=WHOLE_PAIRS,
)
def apply_rope_pos_ids(case: RopeFlags, make: TensorFactory) -> Problem:
    """Apply RoPE with position IDs."""
    tensors = {**inputs.query_and_key(case, make), "pos_ids": inputs.positions(case, make)}
    used = frequencies(case, make.device)
    return Problem(
        tensors=tensors,
        reference=partial(reference.by_positions, frequencies=used.scaled, heads=inputs.heads_of(case)),
        work=work.by_positions(case),
        checks=inputs.checks(case, make, calls.ROTATED, used),
        ranks=make.ranks,
        shown=(*inputs.shapes(tensors), *calls.shown(case)),
    )


@apply_rope_pos_ids.backend("cuda", requires=backends.ROTATES, documented=backends.EVERYWHERE)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel, which computes cosines and sines as it goes."""
    return Launch(flashinfer.rope.apply_rope_pos_ids, kwargs=calls.arguments(case, problem), returns=calls.ROTATED)


@apply_rope_pos_ids.backend("triton", requires=backends.NEEDS_TRITON)
def triton_kernel(case: RopeFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, for every head_dim."""
    from flashinfer_perf.kernels import rope

    return Launch(rope.apply_rope_pos_ids, kwargs=calls.triton_arguments(case, problem), returns=calls.ROTATED)


@apply_rope_pos_ids.backend("torch")
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return Launch(eager.apply_rope_pos_ids, kwargs=calls.eager_arguments(case, problem), returns=calls.ROTATED)
