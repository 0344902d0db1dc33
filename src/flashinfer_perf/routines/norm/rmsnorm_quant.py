"""RMSNorm and FP8 quantisation in one: out = fp8(x / rms(x) * weight / scale)."""

from __future__ import annotations

from functools import partial

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
    "rmsnorm_quant",
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
def rmsnorm_quant(case: NormFlags, make: TensorFactory) -> Problem:
    """RMSNorm with FP8 quantised output."""
    tensors = inputs.tensors(case, make)
    return Problem(
        tensors=tensors,
        reference=partial(reference.rms_norm_quant, eps=case.eps, scale=case.scale, dtype=case.out_dtype),
        work=work.rms_norm_quant(case),
        checks={"out": Fp8Codes()},
        ranks=make.ranks,
        shown=inputs.shown_fp8(case, tensors),
    )


@rmsnorm_quant.backend(
    "cuda", requires=backends.NEEDS_CUDA, documented=backends.EVERYWHERE, state=backends.cuda_kernels
)
def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    return call_flashinfer(case, problem, backends.CUDA)


@rmsnorm_quant.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL, state=backends.cute_dsl_kernels)
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: NormFlags, problem: Problem, implementation: str) -> Launch:
    device = problem["x"].device
    return Launch(
        flashinfer.norm.rmsnorm_quant,
        kwargs={
            **arguments.with_out(case, problem, case.out_dtype),
            "scale": torch.full((1,), case.scale, device=device),
            "enable_pdl": case.enable_pdl,
        },
        mutates=("out",),
        resolved_backend=backends.resolved(implementation, device),
    )


@rmsnorm_quant.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    kwargs = {**arguments.with_out(case, problem, case.out_dtype), "scale": case.scale, "dtype": case.out_dtype}
    return Launch(normalise_and_quantise, kwargs=kwargs, mutates=("out",))


def normalise_and_quantise(
    out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, scale: float, eps: float, dtype: DType
) -> None:
    """In fp32, all (batch, hidden): out = fp8(norm(input) * weight / scale)."""
    out.copy_(encode(eager.normed(input, weight, eps) / scale, dtype))
