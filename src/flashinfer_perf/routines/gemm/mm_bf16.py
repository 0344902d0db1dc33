"""Product of bfloat16 operands, with a bias or without: A B^T + bias, a linear layer."""

from __future__ import annotations

import math
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.gemm import backends, eager, inputs, reference, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import BF16_OPERANDS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "mm_bf16",
    flags=GemmFlags,
    uses=(
        "m",
        "n",
        "k",
        narrowed("input_dtype", default=DType.BFLOAT16, choices=BF16_OPERANDS),
        narrowed("mat2_dtype", default=DType.BFLOAT16, choices=BF16_OPERANDS),
        "out_dtype",
        "bias",
        "enable_pdl",
        "autotune",
    ),
    facts=tuning.TUNING_FACTS,
)
def mm_bf16(case: GemmFlags, make: TensorFactory) -> Problem:
    """Matrix multiplication of bfloat16 operands."""
    inputs.reserve_outputs(case, make)
    tensors = {
        "a": make.normal("a", (case.m, case.k), DType.BFLOAT16),
        "b": make.normal("b", (case.n, case.k), DType.BFLOAT16).T,
    }
    if case.bias:  # as large as the product is: one that is forgotten must show
        tensors["bias"] = make.normal("bias", (case.n,), DType.BFLOAT16, 1 / math.sqrt(case.k))
    return Problem(
        tensors=tensors,
        reference=reference.plain_product,
        work=formulas.product_with_bias(case),
        checks={
            "out": tolerance.for_product(case.k, case.out_dtype, operand_bits=16, rms=1.0, outputs=case.m * case.n),
        },
        ranks=make.ranks,
        shown=tuple(Shown(f"{name}.{what}", getattr(t, what)) for name, t in tensors.items() for what in SHOWN),
    )


SHOWN = ("shape", "dtype")


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str) -> Launch:
    kwargs: dict[str, Any] = {
        "a": problem["a"],
        "b": problem["b"],
        "bias": problem.tensors.get("bias"),
        "pdl": case.enable_pdl,
        "out": inputs.room(case, problem),
        "out_dtype": case.out_dtype.torch,
        "backend": backend,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.mm_bf16, kwargs=kwargs, mutates=("out",)), backend)


@mm_bf16.backend(
    "cudnn",
    requires=backends.on(backends.AMPERE_AND_NEWER, backends.cudnn_installed, backends.no_pdl),
    state=tuning.tuner,
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@mm_bf16.backend(
    "cublaslt",
    requires=backends.on(backends.AMPERE_AND_NEWER, backends.bias_to_bf16, backends.no_pdl),
    state=tuning.tuner,
)
def cublaslt(case: GemmFlags, problem: Problem) -> Launch:
    """cuBLASLt."""
    return call_flashinfer(case, problem, "cublaslt")


@mm_bf16.backend(
    "cutlass",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, backends.no_bias, backends.no_pdl),
    state=tuning.tuner,
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@mm_bf16.backend(
    "tgv",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, backends.cute_dsl_installed, backends.to_bf16),
    state=tuning.tuner,
)
def tgv(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's TGV kernel, in the CuTe DSL."""
    return call_flashinfer(case, problem, "tgv")


WHOLE_TILES: tuple[Requirement, ...] = (
    backends.n_multiple_of(16, "TinyGEMM computes 16 columns at a time"),
    backends.k_multiple_of(64, "TinyGEMM reads 64 products at a time"),
)


@mm_bf16.backend(
    "tinygemm", requires=backends.on(backends.TINYGEMM, backends.to_bf16, *WHOLE_TILES), state=tuning.tuner
)
def tinygemm(case: GemmFlags, problem: Problem) -> Launch:
    """TinyGEMM, for few rows."""
    return call_flashinfer(case, problem, "tinygemm")


@mm_bf16.backend(
    "cutile",
    requires=backends.on(backends.CUTILE, backends.no_bias, backends.no_pdl, backends.cutile_installed),
    ignores=("autotune",),
)
def cutile(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's cuTile kernel, which tunes itself at its first call."""
    return call_flashinfer(case, problem, "cutile")


@mm_bf16.backend(
    "cute-dsl",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, backends.cute_dsl_installed, backends.to_bf16),
    state=tuning.tuner,
)
def cute_dsl(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernels for up to 32 rows; above, cuBLASLt."""
    return call_flashinfer(case, problem, "cute-dsl")


@mm_bf16.backend("auto", requires=backends.on(backends.AMPERE_AND_NEWER), state=tuning.tuner)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@mm_bf16.backend("torch", ignores=("autotune", "enable_pdl"))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch's own product; to float16 and float32 that of fp32 operands."""
    kwargs = {
        "a": problem["a"],
        "b": problem["b"],
        "bias": problem.tensors.get("bias"),
        "out": inputs.room(case, problem),
    }
    return Launch(eager.plain_product, kwargs=kwargs, mutates=("out",))
