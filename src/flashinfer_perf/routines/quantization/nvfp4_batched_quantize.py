"""Quantises a batch of matrices to NVFP4, the scales of each in tiles of their own, with one global scale for all."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.block_formats import NVFP4
from flashinfer_perf.core.flags import REQUIRED
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.quantization import backends, inputs, reference, remarks, work
from flashinfer_perf.routines.quantization.encoding import SF, X_Q, Encoding
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.routines.quantization.nvfp4_quantize import BLOCK_RULES, quantise
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "nvfp4_batched_quantize",
    flags=QuantizationFlags,
    uses=("m", "k", "input_dtype", narrowed("batch_size", default=REQUIRED), "global_scale", "sf_vec_size"),
    rules=BLOCK_RULES,
)
def nvfp4_batched_quantize(case: QuantizationFlags, make: TensorFactory) -> Problem:
    """Batched NVFP4 quantization (Blackwell SM10.0+)."""
    encoding = encoding_of(case)
    x = inputs.matrix(case, make, encoding)
    return Problem(
        tensors={"x": x, "global_scale": inputs.global_scale(case, make)},
        reference=partial(reference.quantised, format=NVFP4),
        work=work.quantise(x.numel(), case.input_dtype, 4, x.numel() // case.sf_vec_size, global_scale=True),
        checks=encoding.checks(case.global_scale),
        ranks=make.ranks,
        shown=inputs.shown(x, global_scale=case.global_scale, sf_vec_size=case.sf_vec_size),
        remarks=remarks.shapes,
    )


def encoding_of(case: QuantizationFlags) -> Encoding:
    """Scales in 128x4 tiles, (batch, bytes of an entry)."""
    assert case.batch_size is not None  # it is required
    return Encoding(NVFP4, (case.batch_size, case.m, case.k), "128x4", kept=1)


@nvfp4_batched_quantize.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel, never with programmatic dependent launch."""
    kwargs = {
        "a": problem["x"],
        "a_global_sf": problem["global_scale"],
        "sf_vec_size": case.sf_vec_size,
        "nvfp4_4over6": None,  # off; left out, the library would look for it in the environment
    }
    return Launch(flashinfer.nvfp4_batched_quantize, kwargs=kwargs, returns=(X_Q, SF))


@nvfp4_batched_quantize.backend("triton", requires=backends.NEEDS_TRITON)
def triton_kernel(case: QuantizationFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, bit-exact."""
    from flashinfer_perf.kernels.quantize import quantize_nvfp4

    encoding = encoding_of(case)
    kwargs = {
        "x": problem["x"],
        **encoding.room(problem["x"].device),
        "global_scale": problem["global_scale"],
        "layout": encoding.layout,
    }
    return Launch(quantize_nvfp4, kwargs=kwargs, mutates=(X_Q, SF))


@nvfp4_batched_quantize.backend("torch")
def torch_eager(case: QuantizationFlags, problem: Problem) -> Launch:
    """PyTorch integer and fp32 operations, bit-exact."""
    kwargs = {"x": problem["x"], "global_scale": problem["global_scale"], "encoding": encoding_of(case)}
    return Launch(quantise, kwargs=kwargs, returns=(X_Q, SF))
