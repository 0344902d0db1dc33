"""Quantises a matrix to MXFP4: packed E2M1 elements, an E8M0 scale for every 32 of them."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.block_formats import MXFP4
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.formats import mxfp4
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.quantization import backends, inputs, reference, remarks, work
from flashinfer_perf.routines.quantization.encoding import SF, X_Q, Encoding
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "mxfp4_quantize",
    flags=QuantizationFlags,
    uses=("m", "k", "input_dtype", "sf_layout", "enable_pdl"),
    rules=(Rule(lambda case: case.k % mxfp4.BLOCK == 0, "k ({k}) must be divisible by the block size, 32"),),
)
def mxfp4_quantize(case: QuantizationFlags, make: TensorFactory) -> Problem:
    """Quantize tensor to MxFP4 format (Blackwell SM10.0+)."""
    encoding = encoding_of(case)
    x = inputs.matrix(case, make, encoding)
    return Problem(
        tensors={"x": x},
        reference=partial(reference.quantised, format=MXFP4),
        work=work.quantise(x.numel(), case.input_dtype, element_bits=4, scales=x.numel() // mxfp4.BLOCK),
        checks=encoding.checks(),
        ranks=make.ranks,
        shown=inputs.shown(x),
        remarks=partial(remarks.shapes_and_round_trip, x=x, encoding=encoding),
    )


def encoding_of(case: QuantizationFlags) -> Encoding:
    """Scales in (padded rows, padded columns)."""
    return Encoding(MXFP4, (case.m, case.k), case.sf_layout, kept=1)


@mxfp4_quantize.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED, ignores=("enable_pdl",))
def flashinfer_cuda(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel, always with programmatic dependent launch."""  # its caller cannot switch that off
    kwargs = {"a": problem["x"], "backend": backends.CUDA, "sfLayout": backends.sf_layout(case)}
    return Launch(flashinfer.mxfp4_quantize, kwargs=kwargs, returns=(X_Q, SF))


@mxfp4_quantize.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL)
def flashinfer_cute_dsl(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    kwargs = {
        "a": problem["x"],
        "backend": backends.CUTE_DSL,
        "enable_pdl": case.enable_pdl,
        "sfLayout": backends.sf_layout(case),
    }
    return Launch(flashinfer.mxfp4_quantize, kwargs=kwargs, returns=(X_Q, SF))


@mxfp4_quantize.backend("triton", requires=backends.NEEDS_TRITON, ignores=("enable_pdl",))
def triton_kernel(case: QuantizationFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, bit-exact."""
    from flashinfer_perf.kernels.quantize import quantize_mxfp4

    encoding = encoding_of(case)
    kwargs = {
        "x": problem["x"],
        **encoding.room(problem["x"].device),
        "layout": encoding.layout,
    }
    return Launch(quantize_mxfp4, kwargs=kwargs, mutates=(X_Q, SF))


@mxfp4_quantize.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: QuantizationFlags, problem: Problem) -> Launch:
    """PyTorch integer and fp32 operations, bit-exact."""
    return Launch(quantise, kwargs={"x": problem["x"], "encoding": encoding_of(case)}, returns=(X_Q, SF))


def quantise(x: torch.Tensor, encoding: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, k) of 16-bit floats to x_q (m, k / 2) and sf, both bytes."""
    return encoding.place(*mxfp4.encode(x))
