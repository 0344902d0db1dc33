"""Product of FP4 operands, NVFP4 or MXFP4: A B^T * alpha, where alpha undoes NVFP4's global scales."""

from __future__ import annotations

from functools import partial
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement, case_rule, on_generations
from flashinfer_perf.core.routine import Rule, narrowed, routine
from flashinfer_perf.formats import mxfp4, nvfp4
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, fp4, inputs, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown

NO_PDL = ("enable_pdl",)


@routine(
    "mm_fp4",
    flags=GemmFlags,
    uses=(
        "m",
        "n",
        "k",
        narrowed("out_dtype", choices=SIXTEEN_BITS),
        "use_128x4_sf_layout",
        "use_nvfp4",
        "enable_pdl",
        "autotune",
    ),
    facts=tuning.TUNING_FACTS,
    rules=(
        Rule(
            lambda case: case.k % fp4.block_of(case) == 0,
            "k ({k}) must be divisible by the block, which is 32 in mxfp4 and 16 with --use_nvfp4",
        ),
    ),
)
def mm_fp4(case: GemmFlags, make: TensorFactory) -> Problem:
    """Matrix multiplication with NVFP4 inputs."""
    inputs.reserve_outputs(case, make)
    a = fp4.operand(case, make, "a", case.m, fp4.layout_of(case))
    b = fp4.operand(case, make, "b", case.n, fp4.WEIGHT_LAYOUT)
    return Problem(
        tensors={
            "a": a.packed,
            "b": b.packed,
            "a_scale": a.scales,
            "b_scale": b.scales,
            "alpha": 1 / (a.global_scale * b.global_scale),
        },
        reference=partial(fp4.truth, use_nvfp4=case.use_nvfp4, layout=fp4.layout_of(case)),
        work=formulas.products(case, fp4.format_of(case), fp4.format_of(case)),
        checks={"out": tolerance.for_product(case.k, case.out_dtype, operand_bits=8, rms=1.0, outputs=case.m * case.n)},
        ranks=make.ranks,
        shown=(
            Shown("input_fp4.shape", a.packed.shape),
            Shown("input_fp4.dtype", a.packed.dtype),
            Shown("mat2_fp4.shape", b.packed.shape),
            Shown("mat2_fp4.dtype", b.packed.dtype),
        ),
    )


def call_flashinfer(
    case: GemmFlags, problem: Problem, backend: str, b: torch.Tensor | None = None, b_scale: torch.Tensor | None = None
) -> Launch:
    """With alpha in NVFP4 for every backend: some take 1 for None, and give the product of the scaled operands."""
    kwargs = {
        "a": problem["a"],
        "b": (problem["b"] if b is None else b).T,
        "a_descale": problem["a_scale"],
        "b_descale": (problem["b_scale"] if b_scale is None else b_scale).T,
        "alpha": problem["alpha"] if case.use_nvfp4 else None,
        "out_dtype": case.out_dtype.torch,
        "out": inputs.room(case, problem),
        "block_size": fp4.block_of(case),
        "use_8x4_sf_layout": not case.use_128x4_sf_layout,
        "backend": backend,
        "use_nvfp4": case.use_nvfp4,
        "enable_pdl": case.enable_pdl,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.mm_fp4, kwargs=kwargs, mutates=("out",)), backend)


tiles_128x4 = case_rule(
    "--use_128x4_sf_layout",
    lambda case: case.use_128x4_sf_layout,
    "it reads A's scales in tiles of 128x4 only; add --use_128x4_sf_layout",
)
in_nvfp4 = case_rule("--use_nvfp4", lambda case: case.use_nvfp4, "it multiplies NVFP4 only; add --use_nvfp4")
CUTLASS_TILES: tuple[Requirement, ...] = (
    backends.k_multiple_of(32, "FlashInfer's CUTLASS kernels read 16 bytes of a row at a time"),
    backends.n_multiple_of(32, "FlashInfer's CUTLASS kernels demand it"),
)
WEIGHTS_TO_SHUFFLE: tuple[Requirement, ...] = (
    backends.n_multiple_of(128, "TensorRT-LLM's weights are shuffled in tiles of 128 rows"),
    backends.k_multiple_of(64, "TensorRT-LLM's weights have scales in tiles of four blocks of 16"),
)
whole_low_latency_tiles = case_rule(
    "k divisible by 64 in NVFP4, by 128 in MXFP4",
    lambda case: case.k % (64 if case.use_nvfp4 else 128) == 0,
    "the low-latency kernel needs k divisible by 64 with --use_nvfp4 and by 128 without",
)
ON_12 = tuple(
    on_generations((12,), rule)
    for rule in (
        in_nvfp4,
        backends.to_bf16,
        backends.n_multiple_of(64, "FlashInfer's CuTe-DSL kernels for 12.x have tiles of 64"),
        backends.k_multiple_of(64, "FlashInfer's CuTe-DSL kernels for 12.x have tiles of 64"),
        backends.cuda_toolkit("13.0"),
    )
)


def _b12x_toolkit(machine: Machine, flags: Any) -> str | None:
    minimum = "13.0" if flags is not None and not flags.use_nvfp4 else "12.9"
    return backends.cuda_toolkit(minimum).unmet(machine, flags)


b12x_toolkit = Requirement("CUDA 12.9 or newer, 13.0 for MXFP4", _b12x_toolkit, on_package=True)


@mm_fp4.backend(
    "cudnn",
    requires=backends.on(backends.BLACKWELL, backends.cudnn_installed, tiles_128x4),
    documented="10.0 10.3 12.0",
    ignores=NO_PDL,
    state=tuning.tuner,
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@mm_fp4.backend(
    "cutlass",
    requires=backends.on(backends.BLACKWELL, tiles_128x4, in_nvfp4, *CUTLASS_TILES),
    documented=backends.DOCUMENTED_BLACKWELL,
    ignores=NO_PDL,
    state=tuning.tuner,
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@mm_fp4.backend(
    "trtllm",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, in_nvfp4, backends.to_bf16, *WEIGHTS_TO_SHUFFLE),
    documented=backends.DOCUMENTED_BLACKWELL,
    ignores=NO_PDL,
    state=tuning.tuner,
)
def trtllm(case: GemmFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, with weights shuffled for them."""
    b, b_scale = fp4.shuffled(problem["b"], problem["b_scale"], case.k // fp4.block_of(case))
    return call_flashinfer(case, problem, "trtllm", b, b_scale)


@mm_fp4.backend(
    "cute-dsl",
    requires=backends.on(
        backends.GROUPWISE,
        backends.cute_dsl_installed,
        tiles_128x4,
        backends.n_multiple_of(8, "FlashInfer's CuTe-DSL kernels write 8 columns at a time"),
        *ON_12,
    ),
    state=tuning.tuner,
)
def cute_dsl(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernels."""
    return call_flashinfer(case, problem, "cute-dsl")


@mm_fp4.backend(
    "cutedsl_low_latency",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        backends.cute_dsl_installed,
        tiles_128x4,
        backends.up_to_8_rows,
        whole_low_latency_tiles,
    ),
    state=tuning.tuner,
)
def cutedsl_low_latency(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's low-latency kernel in the CuTe DSL, for up to 8 rows."""
    return call_flashinfer(case, problem, "cutedsl_low_latency")


@mm_fp4.backend(
    "b12x",
    requires=backends.on(
        "12.0 12.1",
        backends.cute_dsl_installed,
        b12x_toolkit,
        tiles_128x4,
        backends.k_multiple_of(32, "the kernel reads 16 bytes of a row at a time"),
    ),
    state=tuning.tuner,
)
def b12x(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel for compute capability 12.x in the CuTe DSL."""
    return call_flashinfer(case, problem, "b12x")


@mm_fp4.backend("auto", requires=backends.on(backends.BLACKWELL, tiles_128x4), state=tuning.tuner)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@mm_fp4.backend("torch", ignores=("autotune", *NO_PDL))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, dequantised to fp32 and multiplied."""
    kwargs = {
        **problem.tensors,
        "out": inputs.room(case, problem),
        "use_nvfp4": case.use_nvfp4,
        "layout": fp4.layout_of(case),
    }
    return Launch(multiply, kwargs=kwargs, mutates=("out",))


def multiply(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor,
    out: torch.Tensor,
    use_nvfp4: bool,
    layout: str,
) -> None:
    """out (m, n) = alpha * A B^T of packed (m, k / 2) and (n, k / 2), scales in their layouts."""
    left = _decoded(a, a_scale, layout, use_nvfp4)
    right = _decoded(b, b_scale, fp4.WEIGHT_LAYOUT, use_nvfp4)
    out.copy_(left @ right.T * alpha)


def _decoded(packed: torch.Tensor, scales: torch.Tensor, layout: str, use_nvfp4: bool) -> torch.Tensor:
    """(rows, k) in fp32, before the global scale."""
    if use_nvfp4:
        return nvfp4.decode(nvfp4.Nvfp4(packed, fp4.row_by_row(scales, packed, layout, nvfp4.BLOCK)))
    return mxfp4.decode(mxfp4.Mxfp4(packed, fp4.row_by_row(scales, packed, layout, mxfp4.BLOCK)))
