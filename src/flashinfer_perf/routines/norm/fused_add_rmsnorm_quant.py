"""Residual add, RMSNorm and FP8 quantisation in one: h = x + residual; out = fp8(h / rms(h) * weight / scale)."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.fp8 import Fp8Codes
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import capability, package
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.norm import reference, work
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


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
    x = make.normal("x", (case.batch_size, case.hidden_size), case.input_dtype)
    residual = make.normal("residual", x.shape, case.input_dtype)
    weight = make.normal("weight", (case.hidden_size,), case.input_dtype)
    return Problem(
        tensors={"x": x, "residual": residual, "weight": weight},
        reference=partial(reference.add_rms_norm_quant, eps=case.eps, scale=case.scale, dtype=case.out_dtype),
        work=work.add_rms_norm_quant(case),
        checks={"out": Fp8Codes(), "residual": tolerance.for_rounding(case.input_dtype)},
        ranks=make.ranks,
        shown=(
            Shown("input_tensor.shape", x.shape),
            Shown("input_tensor.dtype", x.dtype),
            Shown("residual_tensor.shape", residual.shape),
            Shown("weight.shape", weight.shape),
            Shown("out_tensor.dtype", case.out_dtype.torch),
            Shown("scale", case.scale),
        ),
    )


@fused_add_rmsnorm_quant.backend(
    "cuda",
    requires=(package("flashinfer", extra="flashinfer"), capability(minimum="7.5")),
    documented="7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0",
)
def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel."""
    x = problem["x"]
    return Launch(
        flashinfer.norm.fused_add_rmsnorm_quant,
        kwargs={
            "out": torch.empty_like(x, dtype=case.out_dtype.torch),
            "input": x,
            "residual": problem["residual"],
            "weight": problem["weight"],
            "scale": torch.full((1,), case.scale, device=x.device),
            "eps": case.eps,
            "enable_pdl": case.enable_pdl,
        },
        mutates=("out", "residual"),
    )


@fused_add_rmsnorm_quant.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: NormFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    x = problem["x"]
    return Launch(
        add_rmsnorm_quant,
        kwargs={
            "out": torch.empty_like(x, dtype=case.out_dtype.torch),
            "input": x,
            "residual": problem["residual"],
            "weight": problem["weight"],
            "scale": case.scale,
            "eps": case.eps,
            "dtype": case.out_dtype,
        },
        mutates=("out", "residual"),
    )


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
    normed = h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * weight.float() / scale
    residual.copy_(h)
    out.copy_(encode(normed, dtype))
