"""Product of MXFP8 operands: A B^T."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.formats import mxfp8
from flashinfer_perf.formats.scale_layout import arrange
from flashinfer_perf.formats.shuffle import shuffle_rows
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, fp4, inputs, mxfp8_operands, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

ONE_LAYOUT = ("use_128x4_sf_layout",)
"""Only TensorRT-LLM's kernels have a choice."""


@routine(
    "mm_mxfp8",
    flags=GemmFlags,
    uses=("m", "n", "k", narrowed("out_dtype", choices=SIXTEEN_BITS), "use_128x4_sf_layout", "autotune"),
    facts=tuning.TUNING_FACTS,
    rules=(mxfp8_operands.RULE,),
)
def mm_mxfp8(case: GemmFlags, make: TensorFactory) -> Problem:
    """Matrix multiplication with MXFP8 inputs."""
    inputs.reserve_outputs(case, make)
    a = mxfp8_operands.operand(make, "a", case.m, case.k)
    b = mxfp8_operands.operand(make, "b", case.n, case.k)
    tensors = {"a": a.elements, "b": b.elements, "a_scale": a.scales, "b_scale": b.scales}
    return Problem(
        tensors=tensors,
        reference=truth,
        work=formulas.products(case, DType.FP8_E4M3, DType.FP8_E4M3),
        checks={"out": mxfp8_operands.check(case)},
        ranks=make.ranks,
        shown=mxfp8_operands.shown(tensors),
    )


def truth(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor) -> dict[str, torch.Tensor]:
    k = a.shape[1]
    rows, columns = mxfp8_operands.linear(a_scale, len(a), k), mxfp8_operands.linear(b_scale, len(b), k)
    return {"out": mxfp8_operands.product(a, b, rows, columns)}


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str, **changes: torch.Tensor | bool) -> Launch:
    kwargs = {
        "a": problem["a"],
        "b": problem["b"].T,
        "a_descale": problem["a_scale"],
        "b_descale": problem["b_scale"],
        "out": inputs.room(case, problem),
        "out_dtype": case.out_dtype.torch,
        "use_8x4_sf_layout": False,
        "backend": backend,
        **changes,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.mm_mxfp8, kwargs=kwargs, mutates=("out",)), backend)


@mm_mxfp8.backend(
    "cutlass",
    requires=backends.on(
        backends.BLACKWELL,
        mxfp8_operands.whole_tiles,
        backends.n_multiple_of(32, "FlashInfer's CUTLASS kernels demand it"),
    ),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@mm_mxfp8.backend(
    "cudnn",
    requires=backends.on(backends.BLACKWELL, backends.cudnn_installed, mxfp8_operands.whole_tiles),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@mm_mxfp8.backend(
    "trtllm",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        mxfp8_operands.whole_tiles,
        backends.to_bf16,
        backends.k_multiple_of(256, "TensorRT-LLM's kernels demand it"),
        backends.n_multiple_of(128, "TensorRT-LLM's weights are shuffled in tiles of 128 rows"),
    ),
    state=tuning.tuner,
)
def trtllm(case: GemmFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels, with weights shuffled for them."""
    a_scale = mxfp8_operands.linear(problem["a_scale"], case.m, case.k)
    b = shuffle_rows(problem["b"].view(torch.uint8)).view(problem["b"].dtype)
    _, b_scale = fp4.shuffled(problem["b"].view(torch.uint8), problem["b_scale"], case.k // mxfp8.BLOCK)
    return call_flashinfer(
        case,
        problem,
        "trtllm",
        a_descale=arrange(a_scale, fp4.layout_of(case)).flatten(),
        b=b.T,
        b_descale=b_scale.flatten(),
        use_8x4_sf_layout=not case.use_128x4_sf_layout,
    )


@mm_mxfp8.backend(
    "cute-dsl",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, backends.cute_dsl_installed, mxfp8_operands.whole_tiles),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def cute_dsl(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernels."""
    return call_flashinfer(case, problem, "cute-dsl")


@mm_mxfp8.backend(
    "cutedsl_low_latency",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        backends.cute_dsl_installed,
        mxfp8_operands.whole_tiles,
        backends.up_to_8_rows,
        backends.k_multiple_of(128, "the low-latency kernel reads tiles of 128"),
    ),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def cutedsl_low_latency(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's low-latency kernel in the CuTe DSL, for up to 8 rows."""
    return call_flashinfer(case, problem, "cutedsl_low_latency")


@mm_mxfp8.backend(
    "b12x",
    requires=backends.on(
        "12.0 12.1",
        backends.cute_dsl_installed,
        backends.cuda_toolkit("13.0"),
        mxfp8_operands.whole_tiles,
        backends.k_multiple_of(128, "the kernel reads tiles of 128"),
    ),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def b12x(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel for compute capability 12.x in the CuTe DSL."""
    return call_flashinfer(case, problem, "b12x")


@mm_mxfp8.backend(
    "auto",
    requires=backends.on(backends.BLACKWELL, mxfp8_operands.whole_tiles),
    ignores=ONE_LAYOUT,
    state=tuning.tuner,
)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@mm_mxfp8.backend("torch", ignores=("autotune", *ONE_LAYOUT))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, dequantised to fp32 and multiplied."""
    kwargs = {**problem.tensors, "out": inputs.room(case, problem)}
    return Launch(multiply, kwargs=kwargs, mutates=("out",))


def multiply(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor) -> None:
    """out (m, n) = A B^T of A (m, k) and B (n, k), scales in 128x4 tiles."""
    k = a.shape[1]
    left = mxfp8.decode(mxfp8.Mxfp8(a, mxfp8_operands.linear(a_scale, len(a), k)))
    right = mxfp8.decode(mxfp8.Mxfp8(b, mxfp8_operands.linear(b_scale, len(b), k)))
    out.copy_(left @ right.T)
