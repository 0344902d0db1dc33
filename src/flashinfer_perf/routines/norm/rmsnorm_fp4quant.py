"""RMSNorm and FP4 quantisation in one: y = x / rms(x) * weight as E2M1 elements with a scale to a block."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.norm import arguments, backends, eager, fp4, inputs, reference, work
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

ROUNDINGS = 1
"""FlashInfer's kernel rounds x * weight to the input's format before it normalises."""


@routine(
    "rmsnorm_fp4quant",
    flags=NormFlags,
    uses=(
        "batch_size",
        "hidden_size",
        "num_heads",
        "input_dtype",
        "eps",
        "enable_pdl",
        fp4.out_dtype,
        "use_global_scale",
        "is_sf_swizzled_layout",
    ),
    rules=fp4.RULES,
)
def rmsnorm_fp4quant(case: NormFlags, make: TensorFactory) -> Problem:
    """RMSNorm with FP4 quantised output (CuTe-DSL, Blackwell SM10.0+)."""
    made = inputs.tensors(case, make)
    normed = partial(reference.rms_norm, **made, eps=case.eps)
    made["global_scale"] = inputs.global_scale(case, make, lambda: normed()["out"])
    scales, block = tuple(fp4.scale_outputs(case)), fp4.BLOCK[case.out_dtype]
    return Problem(
        tensors=made,
        reference=partial(reference.rms_norm_fp4, eps=case.eps, block=block, scales=scales),
        work=work.rms_norm_fp4(case, block),
        checks=fp4.checks(case, ROUNDINGS),
        ranks=make.ranks,
        shown=(*inputs.shown(case, made), *fp4.shown(case), Shown("enable_pdl", case.enable_pdl)),
    )


@rmsnorm_fp4quant.backend("cute-dsl", requires=fp4.NEEDS_BLACKWELL, documented="10.0 10.3")
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    written = fp4.outputs(case, problem["x"])
    return Launch(
        flashinfer.norm.rmsnorm_fp4quant,
        kwargs={**arguments.common(case, problem), **written, **fp4.flashinfer_options(case)},
        mutates=tuple(written),
        resolved_backend=backends.CUTE_DSL,
    )


@rmsnorm_fp4quant.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    written = fp4.outputs(case, problem["x"])
    kwargs = {**arguments.common(case, problem), **written, "format": case.out_dtype}
    return Launch(normalise_and_quantise, kwargs=kwargs, mutates=tuple(written))


@rmsnorm_fp4quant.backend("cuda", requires=fp4.never)
def no_cuda_kernel(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""  # a documented value of --backends, for which the reason is due
    raise Unsupported(fp4.NO_CUDA_KERNEL)


def normalise_and_quantise(
    input: torch.Tensor,
    weight: torch.Tensor,
    global_scale: torch.Tensor,
    eps: float,
    format: DType,
    **written: torch.Tensor,
) -> None:
    """In fp32: y_fp4 and block_scale are the FP4 encoding of norm(input) * weight."""
    fp4.quantise(eager.normed(input, weight, eps), global_scale, format, written)
