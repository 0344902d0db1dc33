"""Residual add, RMSNorm and FP4 quantisation in one: h = residual + x; y = h / rms(h) * weight as FP4 blocks."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.norm import arguments, backends, eager, fp4, inputs, reference, work
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

ROUNDINGS = 2
"""FlashInfer's kernel rounds h to the input's format; for rows that several blocks share, h * weight too."""
UNSWIZZLED = "block_scale_unswizzled"


@routine(
    "add_rmsnorm_fp4quant",
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
        "output_both_sf_layouts",
    ),
    rules=fp4.RULES,
)
def add_rmsnorm_fp4quant(case: NormFlags, make: TensorFactory) -> Problem:
    """Fused residual add + RMSNorm with FP4 quantised output (CuTe-DSL, Blackwell SM10.0+)."""
    made = inputs.tensors(case, make, residual=True)
    normed = partial(reference.add_rms_norm, **made, eps=case.eps)
    made["global_scale"] = inputs.global_scale(case, make, lambda: normed()["input"])
    scales, block = tuple(fp4.scale_outputs(case)), fp4.BLOCK[case.out_dtype]
    return Problem(
        tensors=made,
        reference=partial(reference.add_rms_norm_fp4, eps=case.eps, block=block, scales=scales),
        work=work.add_rms_norm_fp4(case, block),
        checks={**fp4.checks(case, ROUNDINGS), "residual": tolerance.for_rounding(case.input_dtype)},
        ranks=make.ranks,
        shown=(
            *inputs.shown(case, made),
            *fp4.shown(case),
            Shown("output_both_sf_layouts", case.output_both_sf_layouts),
        ),
    )


@add_rmsnorm_fp4quant.backend("cute-dsl", requires=fp4.NEEDS_BLACKWELL, documented="10.0 10.3")
def flashinfer_cute_dsl(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    written = fp4.outputs(case, problem["x"])
    # Without the second layout the library still allocates room for it in every call, unless there is some.
    unused = {} if case.output_both_sf_layouts else {UNSWIZZLED: fp4.scale_output(case, problem["x"], swizzled=False)}
    return Launch(
        flashinfer.norm.add_rmsnorm_fp4quant,
        kwargs={
            **arguments.common(case, problem),
            **written,
            **unused,
            **fp4.flashinfer_options(case),
            "output_both_sf_layouts": case.output_both_sf_layouts,
        },
        mutates=("residual", *written),
        scratch=tuple(unused),
        resolved_backend=backends.CUTE_DSL,
    )


@add_rmsnorm_fp4quant.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    written = fp4.outputs(case, problem["x"])
    kwargs = {**arguments.common(case, problem), **written, "format": case.out_dtype}
    return Launch(add_normalise_and_quantise, kwargs=kwargs, mutates=("residual", *written))


@add_rmsnorm_fp4quant.backend("cuda", requires=fp4.never)
def no_cuda_kernel(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""  # a documented value of --backends, for which the reason is due
    raise Unsupported(fp4.NO_CUDA_KERNEL)


def add_normalise_and_quantise(
    input: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    global_scale: torch.Tensor,
    eps: float,
    format: DType,
    **written: torch.Tensor,
) -> None:
    """In fp32, in place: residual += input; y_fp4 and block_scale are the FP4 encoding of norm(residual) * weight."""
    h = input.float() + residual.float()
    residual.copy_(h)
    fp4.quantise(eager.normed(h, weight, eps), global_scale, format, written)
