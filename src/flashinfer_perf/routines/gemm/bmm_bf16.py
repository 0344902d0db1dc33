"""Batched product of bfloat16 operands: out[i] = A[i] B[i]."""

from __future__ import annotations

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import case_rule
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.gemm import backends, eager, inputs, reference, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import BF16_OPERANDS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "bmm_bf16",
    flags=GemmFlags,
    uses=(
        "batch_size",
        "m",
        "n",
        "k",
        narrowed("input_dtype", default=DType.BFLOAT16, choices=BF16_OPERANDS),
        narrowed("mat2_dtype", default=DType.BFLOAT16, choices=BF16_OPERANDS),
        "out_dtype",
        "autotune",
    ),
    facts=tuning.TUNING_FACTS,
)
def bmm_bf16(case: GemmFlags, make: TensorFactory) -> Problem:
    """Batched matrix multiplication of bfloat16 operands."""
    batch, m, n, k = case.batch_size, case.m, case.n, case.k
    inputs.reserve_outputs(case, make, batch)
    a = make.normal("a", (batch, m, k), DType.BFLOAT16)
    b = make.normal("b", (batch, n, k), DType.BFLOAT16).transpose(1, 2)
    return Problem(
        tensors={"a": a, "b": b},
        reference=reference.plain_products,
        work=formulas.products(case, DType.BFLOAT16, DType.BFLOAT16, batch),
        checks={"out": tolerance.for_product(k, case.out_dtype, operand_bits=16, rms=1.0, outputs=batch * m * n)},
        ranks=make.ranks,
        shown=(
            Shown("a.shape", a.shape),
            Shown("a.dtype", a.dtype),
            Shown("b.shape", b.shape),
            Shown("b.dtype", b.dtype),
        ),
    )


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str) -> Launch:
    kwargs = {
        "A": problem["a"],
        "B": problem["b"],
        "out": inputs.room(case, problem),
        "out_dtype": case.out_dtype.torch,
        "backend": backend,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.bmm_bf16, kwargs=kwargs, mutates=("out",)), backend)


@bmm_bf16.backend(
    "cudnn", requires=backends.on(backends.AMPERE_AND_NEWER, backends.cudnn_installed), state=tuning.tuner
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@bmm_bf16.backend("cutlass", requires=backends.on(backends.BLACKWELL_DATACENTRE), state=tuning.tuner)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@bmm_bf16.backend(
    "tgv",
    requires=backends.on(backends.BLACKWELL_DATACENTRE, backends.cute_dsl_installed, backends.to_bf16),
    state=tuning.tuner,
)
def tgv(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's TGV kernel, in the CuTe DSL."""
    return call_flashinfer(case, problem, "tgv")


@bmm_bf16.backend("cutile", requires=backends.on(backends.CUTILE, backends.cutile_installed), ignores=("autotune",))
def cutile(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's cuTile kernel, which tunes itself at its first call."""
    return call_flashinfer(case, problem, "cutile")


@bmm_bf16.backend(
    "cake",
    requires=backends.on(
        backends.DOCUMENTED_BLACKWELL,
        backends.n_multiple_of(8, "CAKE's kernels write 8 columns at a time"),
        case_rule("k of 64, 256 or 1024", lambda case: case.k in (64, 256, 1024)),
    ),
    ignores=("autotune",),
)
def cake(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's generated CAKE kernels."""
    return call_flashinfer(case, problem, "cake")


@bmm_bf16.backend("auto", requires=backends.on(backends.AMPERE_AND_NEWER), state=tuning.tuner)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@bmm_bf16.backend("torch", ignores=("autotune",))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch's own product; to float16 and float32 that of fp32 operands."""
    kwargs = {**problem.tensors, "out": inputs.room(case, problem)}
    return Launch(eager.plain_products, kwargs=kwargs, mutates=("out",))
