"""Batched product of FP8 operands with one scale each: out[i] = (A[i] * sA) (B[i] * sB)."""

from __future__ import annotations

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.requirement import case_rule
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.gemm import backends, eager, inputs, reference, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import FP8, SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "bmm_fp8",
    flags=GemmFlags,
    uses=(
        "batch_size",
        "m",
        "n",
        "k",
        narrowed("input_dtype", choices=FP8),
        narrowed("mat2_dtype", choices=FP8),
        narrowed("out_dtype", choices=SIXTEEN_BITS),
        "autotune",
    ),
    facts=tuning.TUNING_FACTS,
)
def bmm_fp8(case: GemmFlags, make: TensorFactory) -> Problem:
    """Batched matrix multiplication with FP8 inputs."""
    batch, m, n, k = case.batch_size, case.m, case.n, case.k
    inputs.reserve_outputs(case, make, batch)
    a, a_scale = inputs.fp8(make, "input", (batch, m, k), case.input_dtype)
    b, b_scale = inputs.transposed_fp8(make, "mat2", (batch, n, k), case.mat2_dtype)
    return Problem(
        tensors={"a": a, "b": b, "a_scale": a_scale, "b_scale": b_scale},
        reference=reference.scaled_products,
        work=work(case),
        checks={"out": tolerance.for_product(k, case.out_dtype, operand_bits=8, rms=1.0, outputs=batch * m * n)},
        ranks=make.ranks,
        shown=(
            Shown("input_fp8.shape", a.shape),
            Shown("input_fp8.dtype", a.dtype),
            Shown("mat2_fp8.shape", b.shape),
            Shown("mat2_fp8.dtype", b.dtype),
            Shown("input_inv_s", a_scale),
            Shown("input_inv_s.dtype", a_scale.dtype),
            Shown("mat2_inv_s", b_scale),
            Shown("mat2_inv_s.dtype", b_scale.dtype),
        ),
    )


def work(case: GemmFlags) -> Work:
    """The documented formula, but for its bytes: upstream's are those of one of the batch's products, so that its
    TB/s are too low by the batch size.
    """
    return formulas.products(case, case.input_dtype, case.mat2_dtype, case.batch_size)


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str) -> Launch:
    kwargs = {
        "A": problem["a"],
        "B": problem["b"],
        "A_scale": problem["a_scale"],
        "B_scale": problem["b_scale"],
        "dtype": case.out_dtype.torch,
        "out": inputs.room(case, problem),
        "backend": backend,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.bmm_fp8, kwargs=kwargs, mutates=("out",)), backend)


@bmm_fp8.backend(
    "cudnn",
    requires=backends.on(backends.ADA_AND_NEWER, backends.cudnn_installed),
    documented=backends.DOCUMENTED_FP8,
    state=tuning.tuner,
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@bmm_fp8.backend(
    "cublas",
    requires=backends.on(backends.ADA_AND_NEWER, backends.not_e5m2_twice, backends.aligned_16),
    documented=backends.DOCUMENTED_FP8,
    state=tuning.tuner,
)
def cublas(case: GemmFlags, problem: Problem) -> Launch:
    """cuBLASLt, with fast accumulation."""
    return call_flashinfer(case, problem, "cublas")


@bmm_fp8.backend(
    "cutlass",
    requires=backends.on(backends.BLACKWELL, backends.e4m3_only),
    documented=backends.DOCUMENTED_BLACKWELL,
    state=tuning.tuner,
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@bmm_fp8.backend(
    "cute-dsl",
    requires=backends.on(
        "10.7",
        backends.cute_dsl_installed,
        case_rule("m, n and k divisible by 16", lambda case: case.m % 16 == case.n % 16 == case.k % 16 == 0),
        case_rule("the same format for both operands", lambda case: case.input_dtype is case.mat2_dtype),
    ),
    state=tuning.tuner,
)
def cute_dsl(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CuTe-DSL kernel, for Rubin."""
    return call_flashinfer(case, problem, "cute-dsl")


@bmm_fp8.backend("auto", requires=backends.on(backends.ADA_AND_NEWER, backends.not_e5m2_twice), state=tuning.tuner)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@bmm_fp8.backend("torch", ignores=("autotune",))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, one after the other of the batch: its scaled product where the GPU has one, else of fp32 operands."""
    a, b = problem["a"], problem["b"]
    kwargs = {**problem.tensors, "out": inputs.room(case, problem)}
    if eager.has_scaled_product(a, case.n, b.dtype):
        return Launch(eager.scaled_products, kwargs=kwargs, mutates=("out",), resolved_backend=eager.SCALED)
    return Launch(eager.dequantised_products, kwargs=kwargs, mutates=("out",))
