"""RoPE with Llama 3.1's frequencies, sequences given by where they begin."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.rope import backends, calls, eager, inputs, reference, work
from flashinfer_perf.routines.rope.flags import LLAMA31_RULES, RopeFlags
from flashinfer_perf.routines.rope.frequencies import llama31_frequencies
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "apply_llama31_rope",
    flags=RopeFlags,
    uses=calls.LLAMA31_FLAGS,
    rules=LLAMA31_RULES,
)
def apply_llama31_rope(case: RopeFlags, make: TensorFactory) -> Problem:
    """Apply Llama 3.1 style RoPE with indptr/offsets."""
    tensors = {**inputs.query_and_key(case, make), **inputs.sequences(case, make)}
    used = llama31_frequencies(case, make.device)
    return Problem(
        tensors=tensors,
        reference=partial(reference.by_offsets, frequencies=used.scaled, heads=inputs.heads_of(case)),
        work=work.by_offsets(case),
        checks=inputs.checks(case, make, calls.ROTATED, used),
        ranks=make.ranks,
        shown=(*inputs.shapes(tensors), *calls.shown(case, llama31=True)),
    )


@apply_llama31_rope.backend("cuda", requires=backends.ROTATES, documented=backends.EVERYWHERE)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel, which computes cosines and sines as it goes."""
    return Launch(
        flashinfer.rope.apply_llama31_rope, kwargs=calls.arguments(case, problem, llama31=True), returns=calls.ROTATED
    )


@apply_llama31_rope.backend("triton", requires=backends.NEEDS_TRITON)
def triton_kernel(case: RopeFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, for every head_dim."""
    from flashinfer_perf.kernels import rope

    return Launch(rope.apply_rope, kwargs=calls.triton_arguments(case, problem, llama31=True), returns=calls.ROTATED)


@apply_llama31_rope.backend("torch")
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return Launch(eager.apply_rope, kwargs=calls.eager_arguments(case, problem, llama31=True), returns=calls.ROTATED)
