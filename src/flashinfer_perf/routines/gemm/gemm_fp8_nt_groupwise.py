"""Product of FP8 operands with a scale for every tile of them, A B^T, as DeepSeek-V3's linear layers have it."""

from __future__ import annotations

from functools import partial
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import case_rule, on_generations
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, groupwise, inputs
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "gemm_fp8_nt_groupwise",
    flags=GemmFlags,
    uses=(
        "m",
        "n",
        "k",
        "tile_size",
        "scale_major_mode",
        narrowed("out_dtype", choices=SIXTEEN_BITS),
        "mma_sm",
        "autotune",
    ),
    rules=groupwise.RULES,
)
def gemm_fp8_nt_groupwise(case: GemmFlags, make: TensorFactory) -> Problem:
    """GEMM with FP8 data types using groupwise scaling."""
    inputs.reserve_outputs(case, make)
    made = groupwise.operands(case, make)
    return Problem(
        tensors=made,
        reference=partial(truth, tile=case.tile_size, mode=case.scale_major_mode),
        work=formulas.products(case, DType.FP8_E4M3, DType.FP8_E4M3),
        checks={"out": groupwise.check(case)},
        ranks=make.ranks,
        shown=groupwise.shown(made),
    )


def truth(*, tile: int, mode: str, **operands: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"out": groupwise.truth(**operands, tile=tile, mode=mode)}


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str, **changes: Any) -> Launch:
    kwargs = {
        **problem.tensors,
        "scale_major_mode": case.scale_major_mode,
        "mma_sm": case.mma_sm,
        "scale_granularity_mnk": groupwise.GRANULARITY,
        "out": inputs.room(case, problem),
        "out_dtype": case.out_dtype.torch,
        "backend": backend,
        **changes,
    }
    return Launch(flashinfer.gemm.gemm_fp8_nt_groupwise, kwargs=kwargs, mutates=("out",))


@gemm_fp8_nt_groupwise.backend(
    "cutlass",
    requires=backends.on(
        backends.GROUPWISE,
        backends.tiles_of_128,
        groupwise.whole_quads_above_32,
        on_generations((12,), groupwise.whole_quads),
    ),
    documented=backends.DOCUMENTED_BLACKWELL,
    ignores=("autotune",),
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@gemm_fp8_nt_groupwise.backend(
    "trtllm",
    requires=backends.on(
        backends.BLACKWELL_DATACENTRE,
        backends.tiles_of_128,
        backends.to_bf16,
        case_rule("k of 256 or more", lambda case: case.k >= 256, "TensorRT-LLM's kernels need a k of 256 or more"),
    ),
    ignores=("autotune", "scale_major_mode", "mma_sm"),
)
def trtllm(case: GemmFlags, problem: Problem) -> Launch:
    """TensorRT-LLM's kernels."""
    # A's scales with the rows fastest, B's with the tiles along k fastest: of either mode one half
    a_scale = groupwise.by_row(problem["a_scale"], case.scale_major_mode).T.contiguous()
    b_scale = groupwise.by_row(problem["b_scale"], case.scale_major_mode).contiguous()
    changes = {"a_scale": a_scale, "b_scale": b_scale, "scale_major_mode": "MN", "mma_sm": 1}
    return call_flashinfer(case, problem, "trtllm", **changes)


@gemm_fp8_nt_groupwise.backend(
    "cutile",
    requires=backends.on(backends.BLACKWELL, backends.tiles_of_128, backends.k_major, backends.cutile_installed),
    ignores=("autotune", "mma_sm"),
)
def cutile(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's cuTile kernel."""
    return call_flashinfer(case, problem, "cutile")


@gemm_fp8_nt_groupwise.backend(
    "deepgemm",
    requires=backends.on(
        "9.0", backends.cuda_toolkit("12.8"), backends.tiles_of_128, backends.to_bf16, groupwise.whole_quads
    ),
    ignores=("autotune", "scale_major_mode", "mma_sm"),
)
def deepgemm(case: GemmFlags, problem: Problem) -> Launch:
    """DeepGEMM's kernel for Hopper, as FlashInfer's fp8_blockscale_gemm_sm90 compiles it at its first call."""
    kwargs = {
        "input": problem["a"],
        "weight": problem["b"],
        # Documented as (m, tiles along k); the kernel reads them with the rows fastest
        "input_scale": groupwise.by_row(problem["a_scale"], case.scale_major_mode).T.contiguous(),
        "weight_scale": groupwise.by_row(problem["b_scale"], case.scale_major_mode).contiguous(),
        "out": inputs.room(case, problem),
    }
    return Launch(flashinfer.gemm.fp8_blockscale_gemm_sm90, kwargs=kwargs, mutates=("out",))


@gemm_fp8_nt_groupwise.backend("cublas", requires=groupwise.CUBLAS, ignores=("autotune", "mma_sm"))
def cublas(case: GemmFlags, problem: Problem) -> Launch:
    """cuBLASLt with block scales, through PyTorch."""
    kwargs = {**problem.tensors, **groupwise.for_cublas(case, problem.tensors), "out": inputs.room(case, problem)}
    return Launch(groupwise.block_scaled, kwargs=kwargs, mutates=("out",))


@gemm_fp8_nt_groupwise.backend("triton", requires=groupwise.TRITON, ignores=("autotune", "mma_sm"))
def triton_kernel(case: GemmFlags, problem: Problem) -> Launch:
    """This project's Triton kernels: one for Hopper, one for the rest."""
    from flashinfer_perf.kernels.gemm_fp8_groupwise import gemm_fp8_groupwise

    made = problem.tensors
    kwargs = {
        "a": made["a"],
        "b": made["b"][None],
        "a_scale": made["a_scale"],
        "b_scale": made["b_scale"][None],
        "m_indptr": torch.tensor([0, case.m], dtype=torch.int32, device=made["a"].device),
        "out": inputs.room(case, problem),
        "scale_major_mode": case.scale_major_mode,
    }
    return Launch(gemm_fp8_groupwise, kwargs=kwargs, mutates=("out",))


@gemm_fp8_nt_groupwise.backend("torch", ignores=("autotune", "mma_sm"))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, dequantised to fp32 and multiplied."""
    kwargs = {
        **problem.tensors,
        "out": inputs.room(case, problem),
        "tile": case.tile_size,
        "mode": case.scale_major_mode,
    }
    return Launch(multiply, kwargs=kwargs, mutates=("out",))


def multiply(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out: torch.Tensor,
    tile: int,
    mode: str,
) -> None:
    """out (m, n) = a (m, k) b (n, k)^T, scales as the mode has them."""
    groupwise.dequantised(a, b, groupwise.by_row(a_scale, mode), groupwise.by_row(b_scale, mode), out, tile)
