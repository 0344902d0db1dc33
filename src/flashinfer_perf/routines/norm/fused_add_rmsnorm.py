"""Residual add and RMSNorm in one, in place: residual += input; input = residual / rms(residual) * weight."""

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


@routine("fused_add_rmsnorm", flags=NormFlags, uses=("batch_size", "hidden_size", "input_dtype", "eps", "enable_pdl"))
def fused_add_rmsnorm(case: NormFlags, make: TensorFactory) -> Problem:
    """Fused residual add + RMSNorm, in place."""
    tensors = inputs.tensors(case, make, residual=True)
    return Problem(
        tensors=tensors,
        reference=partial(reference.add_rms_norm, eps=case.eps),
        work=work.add_rms_norm(case),
        checks={
            "input": tolerance.for_rounding(case.input_dtype, reduction=case.hidden_size),
            "residual": tolerance.for_rounding(case.input_dtype),
        },
        ranks=make.ranks,
        shown=inputs.shown(case, tensors),
    )


@fused_add_rmsnorm.backend("cuda", requires=backends.NEEDS_CUDA, state=backends.cuda_kernels)
def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    backends.require_row_in_shared_memory(problem["x"])
    return call_flashinfer(case, problem, backends.CUDA)


@fused_add_rmsnorm.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL, state=backends.cute_dsl_kernels)
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: NormFlags, problem: Problem, implementation: str) -> Launch:
    return Launch(
        flashinfer.norm.fused_add_rmsnorm,
        kwargs={**arguments.common(case, problem), "enable_pdl": case.enable_pdl},
        mutates=("input", "residual"),
        resolved_backend=backends.resolved(implementation, problem["x"].device),
    )


@fused_add_rmsnorm.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return Launch(eager.fused_add_rmsnorm, kwargs=arguments.common(case, problem), mutates=("input", "residual"))
