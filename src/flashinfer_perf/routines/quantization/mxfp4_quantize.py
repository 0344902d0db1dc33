"""Quantises a matrix to MXFP4: packed E2M1 elements, an E8M0 scale for every 32 of them, scales in 128x4 tiles."""

from __future__ import annotations

from flashinfer_perf.checks.exact import Exact
from flashinfer_perf.core.requirement import capability, package
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats import mxfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.quantization import reference
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "mxfp4_quantize",
    flags=QuantizationFlags,
    uses=("m", "k", "input_dtype"),
    rules=(Rule(lambda case: case.k % mxfp4.BLOCK == 0, "k ({k}) must be divisible by the block size, 32"),),
)
def mxfp4_quantize(case: QuantizationFlags, make: TensorFactory) -> Problem:
    """Quantize tensor to MxFP4 format."""
    x = make.normal("x", (case.m, case.k), case.input_dtype)
    elements = case.m * case.k
    return Problem(
        tensors={"x": x},
        reference=reference.mxfp4,
        work=Work(
            flops=3 * elements,
            bytes=elements * case.input_dtype.bytes + elements // 2 + elements // mxfp4.BLOCK,
        ),
        checks={"packed": Exact(), "scales": Exact()},
        ranks=make.ranks,
        shown=(Shown("input_tensor.shape", x.shape), Shown("input_tensor.dtype", x.dtype)),
    )


@mxfp4_quantize.backend(
    "cuda",
    requires=(capability(10, 11, 12), package("flashinfer", extra="flashinfer")),
    documented="10.0 10.3",
)
def flashinfer_cuda(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel; its body is compiled for Blackwell only, elsewhere it launches and writes nothing."""
    kwargs = {"a": problem["x"], "backend": "cuda"}
    return Launch(flashinfer.mxfp4_quantize, kwargs=kwargs, returns=("packed", "scales"))


@mxfp4_quantize.backend("torch")
def torch_eager(case: QuantizationFlags, problem: Problem) -> Launch:
    """PyTorch integer and fp32 operations, bit-exact."""
    return Launch(quantise, kwargs={"x": problem["x"]}, returns=("packed", "scales"))


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, k) of 16-bit floats to packed (m, k / 2) and scales in 128x4 tiles."""
    quantised = mxfp4.encode(x)
    return quantised.packed, swizzle_128x4(quantised.scales)
