"""Product of FP8 operands with one scale each: A B^T * alpha, where alpha is the product of the scales."""

from __future__ import annotations

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, eager, inputs, reference, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import FP8, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "mm_fp8",
    flags=GemmFlags,
    uses=(
        "m",
        "n",
        "k",
        narrowed("input_dtype", choices=FP8),
        narrowed("mat2_dtype", choices=FP8),
        narrowed("out_dtype", choices=(DType.BFLOAT16,)),
        "autotune",
    ),
    facts=tuning.TUNING_FACTS,
)
def mm_fp8(case: GemmFlags, make: TensorFactory) -> Problem:
    """Matrix multiplication with FP8 inputs, tuned for few rows."""
    inputs.reserve_outputs(case, make)
    a, a_scale = inputs.fp8(make, "input", (case.m, case.k), case.input_dtype)
    b, b_scale = inputs.fp8(make, "mat2", (case.n, case.k), case.mat2_dtype)
    alpha = a_scale * b_scale
    return Problem(
        tensors={"a": a, "b": b, "alpha": alpha},
        reference=reference.scaled_product,
        work=formulas.products(case, case.input_dtype, case.mat2_dtype),
        checks={"out": tolerance.for_product(case.k, case.out_dtype, operand_bits=8, rms=1.0, outputs=case.m * case.n)},
        ranks=make.ranks,
        shown=(
            Shown("input_fp8.shape", a.shape),
            Shown("input_fp8.dtype", a.dtype),
            Shown("mat2_fp8.shape", b.shape),
            Shown("mat2_fp8.dtype", b.dtype),
            Shown("alpha", alpha),
        ),
    )


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str, b: torch.Tensor | None = None) -> Launch:
    kwargs = {
        "a": problem["a"],
        "b": problem["b"] if b is None else b,
        "alpha": problem["alpha"],
        "out_dtype": case.out_dtype.torch,
        "out": inputs.room(case, problem),
        "backend": backend,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.mm_fp8, kwargs=kwargs, mutates=("out",)), backend)


@mm_fp8.backend(
    "trtllm_low_latency",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        backends.e4m3_only,
        backends.k_multiple_of(128, "TensorRT-LLM's weights are in blocks of 128"),
        backends.n_multiple_of(32, "TensorRT-LLM's weights are shuffled in blocks of 32 rows"),
    ),
    state=tuning.tuner,
)
def trtllm_low_latency(case: GemmFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's low-latency kernels, with weights prepared for them."""
    prepared = flashinfer.prepare_low_latency_gemm_weights(problem["b"], {})
    return call_flashinfer(case, problem, "trtllm_low_latency", prepared)


@mm_fp8.backend(
    "cutedsl_low_latency",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        backends.cute_dsl_installed,
        backends.up_to_8_rows,
        backends.k_multiple_of(128, "the low-latency kernel reads tiles of 128"),
    ),
    state=tuning.tuner,
)
def cutedsl_low_latency(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's low-latency kernel in the CuTe DSL, for up to 8 rows."""
    return call_flashinfer(case, problem, "cutedsl_low_latency")


@mm_fp8.backend(
    "cublas",
    requires=backends.on(backends.ADA_AND_NEWER, backends.not_e5m2_twice, backends.aligned_16),
    state=tuning.tuner,
)
def cublas(case: GemmFlags, problem: Problem) -> Launch:
    """cuBLASLt, with fast accumulation."""
    return call_flashinfer(case, problem, "cublas")


@mm_fp8.backend("cudnn", requires=backends.on(backends.ADA_AND_NEWER, backends.cudnn_installed), state=tuning.tuner)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@mm_fp8.backend("cutlass", requires=backends.on(backends.BLACKWELL, backends.e4m3_only), state=tuning.tuner)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@mm_fp8.backend("auto", requires=backends.on(backends.ADA_AND_NEWER), state=tuning.tuner)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@mm_fp8.backend("torch", ignores=("autotune",))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch: its scaled product where the GPU has one, else of fp32 operands."""
    kwargs = {**problem.tensors, "one": torch.ones_like(problem["alpha"]), "out": inputs.room(case, problem)}
    if eager.has_scaled_product(problem["a"], case.n, problem["b"].dtype):
        return Launch(multiply_scaled, kwargs=kwargs, mutates=("out",), resolved_backend=eager.SCALED)
    return Launch(multiply, kwargs=kwargs, mutates=("out",))


def multiply_scaled(
    a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor, one: torch.Tensor, out: torch.Tensor
) -> None:
    """out (m, n) = a (m, k) b (n, k)^T * alpha, which stands for the scale of one operand."""
    eager.scaled_products(a[None], b.T[None], alpha, one, out[None])


def multiply(a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor, one: torch.Tensor, out: torch.Tensor) -> None:
    """The same, in fp32."""
    eager.dequantised_products(a[None], b.T[None], alpha, one, out[None])
