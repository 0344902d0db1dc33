"""Residual add, RMSNorm and FP8 quantisation in one: h = x + residual; out = fp8(h / rms(h) * weight / scale)."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.fp8 import Fp8Codes
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.norm import arguments, backends, eager, inputs, reference, work
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "fused_add_rmsnorm_quant",
    flags=NormFlags,
    uses=(
        "batch_size",
        "hidden_size",
        "input_dtype",
        "eps",
        "enable_pdl",
        "scale",
        narrowed("out_dtype", choices=(DType.FP8_E4M3, DType.FP8_E5M2)),
    ),
)
def fused_add_rmsnorm_quant(case: NormFlags, make: TensorFactory) -> Problem:
    """Fused residual add + RMSNorm with FP8 quantised output."""
    tensors = inputs.tensors(case, make, residual=True)
    return Problem(
        tensors=tensors,
        reference=partial(reference.add_rms_norm_quant, eps=case.eps, scale=case.scale, dtype=case.out_dtype),
        work=work.add_rms_norm_quant(case),
        checks={"out": Fp8Codes(), "residual": tolerance.for_rounding(case.input_dtype)},
        ranks=make.ranks,
        shown=inputs.shown_fp8(case, tensors),
    )


@fused_add_rmsnorm_quant.backend(
    "cuda", requires=backends.NEEDS_CUDA, documented=backends.EVERYWHERE, state=backends.cuda_kernels
)
def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    backends.require_row_in_shared_memory(problem["x"])
    return call_flashinfer(case, problem, backends.CUDA)


@fused_add_rmsnorm_quant.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL, state=backends.cute_dsl_kernels)
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: NormFlags, problem: Problem, implementation: str) -> Launch:
    device = problem["x"].device
    return Launch(
        flashinfer.norm.fused_add_rmsnorm_quant,
        kwargs={
            **arguments.with_out(case, problem, case.out_dtype),
            "scale": torch.full((1,), case.scale, device=device),
            "enable_pdl": case.enable_pdl,
        },
        mutates=("out", "residual"),
        resolved_backend=backends.resolved(implementation, device),
    )


@fused_add_rmsnorm_quant.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    kwargs = {**arguments.with_out(case, problem, case.out_dtype), "scale": case.scale, "dtype": case.out_dtype}
    return Launch(add_rmsnorm_quant, kwargs=kwargs, mutates=("out", "residual"))


def add_rmsnorm_quant(
    out: torch.Tensor,
    input: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    scale: float,
    eps: float,
    dtype: DType,
) -> None:
    """In fp32, in place, all (batch, hidden): residual += input; out = fp8(norm(residual) * weight / scale)."""
    h = input.float() + residual.float()
    residual.copy_(h)
    out.copy_(encode(eager.normed(h, weight, eps) / scale, dtype))
