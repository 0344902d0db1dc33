"""RMSNorm: out = x / rms(x) * weight, over the last dimension of (batch, hidden) or (batch, heads, hidden)."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.norm import arguments, backends, eager, inputs, reference, work
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "rmsnorm",
    flags=NormFlags,
    uses=("batch_size", "hidden_size", "num_heads", "input_dtype", "eps", "enable_pdl"),
)
def rmsnorm(case: NormFlags, make: TensorFactory) -> Problem:
    """Root Mean Square Layer Normalization."""
    tensors = inputs.tensors(case, make)
    return Problem(
        tensors=tensors,
        reference=partial(reference.rms_norm, eps=case.eps),
        work=work.rms_norm(case),
        checks={"out": tolerance.for_rounding(case.input_dtype, reduction=case.hidden_size)},
        ranks=make.ranks,
        shown=inputs.shown(case, tensors),
    )


@rmsnorm.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.EVERYWHERE, state=backends.cuda_kernels)
def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    return call_flashinfer(case, problem, backends.CUDA)


@rmsnorm.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL, state=backends.cute_dsl_kernels)
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: NormFlags, problem: Problem, implementation: str) -> Launch:
    return Launch(
        flashinfer.norm.rmsnorm,
        kwargs={**arguments.with_out(case, problem, case.input_dtype), "enable_pdl": case.enable_pdl},
        mutates=("out",),
        resolved_backend=backends.resolved(implementation, problem["x"].device),
    )


@rmsnorm.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return Launch(eager.rmsnorm, kwargs=arguments.with_out(case, problem, case.input_dtype), mutates=("out",))
