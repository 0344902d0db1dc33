"""Quantises a matrix to NVFP4: packed E2M1 elements, an E4M3 scale for every 16 of them, a global scale for all."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks.block_formats import NVFP4
from flashinfer_perf.core.routine import Rule, routine
from flashinfer_perf.formats import nvfp4
from flashinfer_perf.formats.scale_layout import TILE_COLUMNS, TILE_ROWS
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.quantization import backends, inputs, reference, remarks, work
from flashinfer_perf.routines.quantization.encoding import SF, X_Q, Encoding
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

BLOCK_RULES = (
    Rule(
        lambda case: case.sf_vec_size == nvfp4.BLOCK,
        "sf_vec_size ({sf_vec_size}) must be 16: NVFP4 has no other block, and blocks of 32 are mxfp4_quantize's",
    ),
    Rule(lambda case: case.k % nvfp4.BLOCK == 0, "k ({k}) must be divisible by the block size, 16"),
    inputs.GLOBAL_SCALE_IN_RANGE,
)
"""Of every quantiser to NVFP4."""
SHUFFLED = "128x4"
"""The only layout of shuffled scales."""
SHUFFLE_RULES = (
    Rule(
        lambda case: not case.do_shuffle or case.sf_layout == SHUFFLED,
        "do_shuffle needs sf_layout 128x4, not {sf_layout}: leave one of the two out",
    ),
    Rule(
        lambda case: not case.do_shuffle or case.m % TILE_ROWS == 0,
        "do_shuffle needs m ({m}) to be a multiple of 128, the rows of a tile of scales",
    ),
    Rule(
        lambda case: not case.do_shuffle or case.k % (TILE_COLUMNS * nvfp4.BLOCK) == 0,
        "do_shuffle needs k ({k}) to be a multiple of 64, the elements that a tile of scales spans",
    ),
)
"""FlashInfer's: it gives shuffled scales the shape of those row by row, into which padding does not fit."""
NO_GRAPH = "do_shuffle=True is not CUDA graph compatible. Disabling CUDA graph."
"""In the documents' words. In every call FlashInfer makes the shuffled row numbers on the host and copies them to the
device from memory that is not pinned, for which it waits.
"""


@routine(
    "nvfp4_quantize",
    flags=QuantizationFlags,
    uses=("m", "k", "input_dtype", "enable_pdl", "global_scale", "sf_layout", "do_shuffle", "sf_vec_size"),
    rules=(*BLOCK_RULES, *SHUFFLE_RULES),
)
def nvfp4_quantize(case: QuantizationFlags, make: TensorFactory) -> Problem:
    """Quantize tensor to NVFP4 format with configurable scale factor layout (Blackwell SM10.0+)."""
    encoding = encoding_of(case)
    x = inputs.matrix(case, make, encoding)
    return Problem(
        tensors={"x": x, "global_scale": inputs.global_scale(case, make)},
        reference=partial(reference.quantised, format=NVFP4),
        work=work.quantise(x.numel(), case.input_dtype, 4, x.numel() // case.sf_vec_size, global_scale=True),
        checks=encoding.checks(case.global_scale),
        ranks=make.ranks,
        shown=inputs.shown(
            x,
            global_scale=case.global_scale,
            sf_layout_str=case.sf_layout,
            do_shuffle=case.do_shuffle,
            sf_vec_size=case.sf_vec_size,
            enable_pdl=case.enable_pdl,
        ),
        remarks=remarks.shapes,
    )


def encoding_of(case: QuantizationFlags) -> Encoding:
    """Scales in (padded rows, padded columns)."""
    return Encoding(NVFP4, (case.m, case.k), case.sf_layout, kept=1, shuffled=case.do_shuffle)


@nvfp4_quantize.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    return call_flashinfer(case, problem, backends.CUDA)


@nvfp4_quantize.backend("cute-dsl", requires=backends.NEEDS_CUTE_DSL)
def flashinfer_cute_dsl(case: QuantizationFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel."""
    return call_flashinfer(case, problem, backends.CUTE_DSL)


def call_flashinfer(case: QuantizationFlags, problem: Problem, backend: str) -> Launch:
    kwargs = {
        "a": problem["x"],
        "a_global_sf": problem["global_scale"],
        "sfLayout": backends.sf_layout(case),
        "do_shuffle": case.do_shuffle,
        "sf_vec_size": case.sf_vec_size,
        "enable_pdl": case.enable_pdl,
        "backend": backend,
        "nvfp4_4over6": None,  # off; left out, the library would look for it in the environment
    }
    no_graph = NO_GRAPH if case.do_shuffle else ""
    return Launch(
        flashinfer.nvfp4_quantize, kwargs=kwargs, returns=(X_Q, SF), host_sync=case.do_shuffle, no_graph=no_graph
    )


@nvfp4_quantize.backend("triton", requires=backends.NEEDS_TRITON, ignores=("enable_pdl",))
def triton_kernel(case: QuantizationFlags, problem: Problem) -> Launch:
    """This project's Triton kernel, bit-exact."""
    from flashinfer_perf.kernels.quantize import quantize_nvfp4

    encoding = encoding_of(case)
    kwargs = {
        "x": problem["x"],
        **encoding.room(problem["x"].device),
        "global_scale": problem["global_scale"],
        "shuffled": encoding.shuffled,
        "layout": encoding.layout,
    }
    return Launch(quantize_nvfp4, kwargs=kwargs, mutates=(X_Q, SF))


@nvfp4_quantize.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: QuantizationFlags, problem: Problem) -> Launch:
    """PyTorch integer and fp32 operations, bit-exact."""
    kwargs = {"x": problem["x"], "global_scale": problem["global_scale"], "encoding": encoding_of(case)}
    return Launch(quantise, kwargs=kwargs, returns=(X_Q, SF))


def quantise(x: torch.Tensor, global_scale: torch.Tensor, encoding: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
    """(…, m, k) of 16-bit floats and (1,) fp32 to x_q (…, m, k / 2) and sf, both bytes."""
    return encoding.place(*nvfp4.encode(x, global_scale))
