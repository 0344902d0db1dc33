"""Quantises a matrix to MXFP8: E4M3 elements, an E8M0 scale for every 32 of them."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.block_formats import MXFP8
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.formats import mxfp8
from flashinfer_perf.formats.scale_layout import LINEAR
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.quantization import backends, inputs, reference, remarks, work
from flashinfer_perf.routines.quantization.encoding import SF, X_Q, Encoding
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "mxfp8_quantize",
    flags=QuantizationFlags,
    uses=("m", "k", "input_dtype", "is_sf_swizzled_layout", "alignment", "enable_pdl"),
    rules=(
        Rule(
            lambda case: case.alignment % mxfp8.BLOCK == 0,
            "alignment ({alignment}) must be a multiple of the block size, 32",
        ),
        Rule(lambda case: case.k % case.alignment == 0, "alignment ({alignment}) must be a divisor of k ({k})"),
    ),
)
def mxfp8_quantize(case: QuantizationFlags, make: TensorFactory) -> Problem:
    """Quantize tensor to MxFP8 format (Blackwell SM10.0+)."""
    encoding = encoding_of(case)
    x = inputs.matrix(case, make, encoding)
    return Problem(
        tensors={"x": x},
        reference=partial(reference.quantised, format=MXFP8),
        work=work.quantise(x.numel(), case.input_dtype, element_bits=8, scales=x.numel() // case.alignment),
        checks=encoding.checks(),
        ranks=make.ranks,
        shown=inputs.shown(
            x,
            is_sf_swizzled_layout=case.is_sf_swizzled_layout,
            alignment=case.alignment,
            enable_pdl=case.enable_pdl,
        ),
        remarks=partial(remarks.shapes_and_round_trip, x=x, encoding=encoding),
    )


def encoding_of(case: QuantizationFlags) -> Encoding:
    """All scales in one dimension."""
    layout = "128x4" if case.is_sf_swizzled_layout else LINEAR
    return Encoding(MXFP8, (case.m, case.k), layout, kept=0)


@mxfp8_quantize.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    return call_flashinfer(case, problem, backends.CUDA)


@mxfp8_quantize.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL)
def flashinfer_cute_dsl(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: QuantizationFlags, problem: Problem, backend: str) -> Launch:
    kwargs = {
        "input": problem["x"],
        "is_sf_swizzled_layout": case.is_sf_swizzled_layout,
        "alignment": case.alignment,
        "enable_pdl": case.enable_pdl,
        "backend": backend,
    }
    return Launch(flashinfer.mxfp8_quantize, kwargs=kwargs, returns=(X_Q, SF))


@mxfp8_quantize.backend("triton", requires=backends.NEEDS_TRITON, ignores=("enable_pdl",))
def triton_kernel(case: QuantizationFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, bit-exact."""
    from flashinfer_perf.kernels.quantize import quantize_mxfp8

    encoding = encoding_of(case)
    kwargs = {
        "x": problem["x"],
        **encoding.room(problem["x"].device),
        "layout": encoding.layout,
    }
    return Launch(quantize_mxfp8, kwargs=kwargs, mutates=(X_Q, SF))


@mxfp8_quantize.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: QuantizationFlags, problem: Problem) -> Launch:
    """PyTorch integer and fp32 operations, bit-exact."""
    kwargs = {"x": problem["x"], "encoding": encoding_of(case), "alignment": case.alignment}
    return Launch(quantise, kwargs=kwargs, returns=(X_Q, SF))


def quantise(x: torch.Tensor, encoding: Encoding, alignment: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, k) of 16-bit floats to x_q (m, k) in float8_e4m3fn and sf, bytes in one dimension."""
    return encoding.place(*mxfp8.encode(x, alignment))
