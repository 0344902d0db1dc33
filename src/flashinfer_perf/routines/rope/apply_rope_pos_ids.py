"""RoPE, the position of each token given."""

from __future__ import annotations

from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.rope import backends, calls, eager
from flashinfer_perf.routines.rope.calls import BY_POSITIONS, PLAIN
from flashinfer_perf.routines.rope.flags import RopeFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine("apply_rope_pos_ids", flags=RopeFlags, uses=PLAIN.uses, rules=PLAIN.rules)
def apply_rope_pos_ids(case: RopeFlags, make: TensorFactory) -> Problem:
    """Apply RoPE with position IDs."""
    return calls.problem_of(case, make, PLAIN, BY_POSITIONS)


@apply_rope_pos_ids.backend("cuda", requires=backends.ROTATES, documented=backends.EVERYWHERE)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel, which computes cosines and sines as it goes."""
    return calls.library_call(flashinfer.rope.apply_rope_pos_ids, case, problem, PLAIN)


@apply_rope_pos_ids.backend("triton", requires=backends.NEEDS_TRITON)
def triton_kernel(case: RopeFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, for every head_dim."""
    from flashinfer_perf.kernels import rope

    return calls.triton_call(rope.apply_rope_pos_ids, case, problem, PLAIN)


@apply_rope_pos_ids.backend("torch")
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return calls.eager_call(eager.apply_rope_pos_ids, case, problem, PLAIN)
