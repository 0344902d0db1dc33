"""Several FP8 products with a scale for every tile, of groups of rows with a weight each: a mixture of experts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, groupwise, inputs
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem, Shown


@routine(
    "group_gemm_fp8_nt_groupwise",
    flags=GemmFlags,
    uses=(
        "m",
        "n",
        "k",
        "tile_size",
        "group_size",
        "scale_major_mode",
        narrowed("out_dtype", choices=SIXTEEN_BITS),
        "mma_sm",
        "autotune",
    ),
    rules=groupwise.RULES,
)
def group_gemm_fp8_nt_groupwise(case: GemmFlags, make: TensorFactory) -> Problem:
    """Group GEMM with FP8 data types using groupwise scaling."""
    groups = case.group_size
    inputs.reserve_outputs(case, make, groups)
    made = groupwise.operands(case, make, groups)
    made["m_indptr"] = torch.arange(0, (groups + 1) * case.m, case.m, dtype=torch.int32, device=make.device)
    return Problem(
        tensors=made,
        reference=partial(truth, tile=case.tile_size, mode=case.scale_major_mode),
        work=formulas.products(case, DType.FP8_E4M3, DType.FP8_E4M3, groups),
        checks={"out": groupwise.check(case, groups)},
        ranks=make.ranks,
        shown=(*groupwise.shown(made), Shown("m_indptr.shape", made["m_indptr"].shape)),
    )


def truth(
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    tile: int,
    mode: str,
) -> dict[str, torch.Tensor]:
    """(groups * m, n), group after group."""
    a_rows, b_rows = groupwise.by_row(a_scale, mode), groupwise.by_row(b_scale, mode)
    parts = [
        groupwise.truth(a[rows], b[group], a_rows[rows], b_rows[group], tile=tile, mode="K")
        for group, rows in enumerate(segments(m_indptr.tolist()))
    ]
    return {"out": torch.cat(parts)}


def segments(bounds: Sequence[int]) -> Iterator[slice]:
    """The rows of each group."""
    return (slice(start, stop) for start, stop in itertools.pairwise(bounds))


def bounds_of(case: GemmFlags) -> list[int]:
    """m_indptr, known on the host."""
    return [group * case.m for group in range(case.group_size + 1)]


def arguments(case: GemmFlags, problem: Problem) -> dict[str, object]:
    """Of FlashInfer's function, whichever kernel it takes."""
    return {
        **problem.tensors,
        "scale_granularity_mnk": groupwise.GRANULARITY,
        "scale_major_mode": case.scale_major_mode,
        "mma_sm": case.mma_sm,
        "out": inputs.room(case, problem),
        "out_dtype": case.out_dtype.torch,
    }


@group_gemm_fp8_nt_groupwise.backend(
    "cutlass",
    requires=backends.on(backends.GROUPWISE, backends.tiles_of_128, groupwise.whole_quads, backends.one_group_on_12),
    documented=backends.DOCUMENTED_BLACKWELL,
    ignores=("autotune",),
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels, which its function calls by default (and names trtllm)."""
    kwargs = {**arguments(case, problem), "backend": "trtllm"}
    return Launch(flashinfer.gemm.group_gemm_fp8_nt_groupwise, kwargs=kwargs, mutates=("out",))


@group_gemm_fp8_nt_groupwise.backend(
    "cutile",
    requires=backends.on(
        backends.GROUPWISE,
        backends.tiles_of_128,
        backends.k_major,
        backends.one_group_on_12,
        backends.cutile_installed,
    ),
    ignores=("autotune", "mma_sm"),
)
def cutile(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's cuTile kernel."""
    # What it may rely on: it has a faster kernel for groups that begin at multiples of its tile
    alignment = groupwise.TILE if case.m % groupwise.TILE == 0 else 1
    kwargs = {**arguments(case, problem), "backend": "cutile", "segment_alignment": alignment}
    return Launch(flashinfer.gemm.group_gemm_fp8_nt_groupwise, kwargs=kwargs, mutates=("out",))


@group_gemm_fp8_nt_groupwise.backend("cublas", requires=groupwise.CUBLAS, ignores=("autotune", "mma_sm"))
def cublas(case: GemmFlags, problem: Problem) -> Launch:
    """cuBLASLt with block scales, through PyTorch, group by group."""
    made, bounds = problem.tensors, bounds_of(case)
    a_scale = groupwise.by_row(made["a_scale"], case.scale_major_mode)
    of_groups = [
        groupwise.for_cublas(
            case, {"a_scale": groupwise.laid_out(a_scale[rows], case), "b_scale": made["b_scale"][group]}
        )
        for group, rows in enumerate(segments(bounds))
    ]
    kwargs = {
        "a": made["a"],
        "b": made["b"],
        "a_scales": [scales["a_scale"] for scales in of_groups],
        "b_scales": [scales["b_scale"] for scales in of_groups],
        "bounds": bounds,
        "out": inputs.room(case, problem),
    }
    return Launch(block_scaled, kwargs=kwargs, mutates=("out",))


def block_scaled(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scales: Sequence[torch.Tensor],
    b_scales: Sequence[torch.Tensor],
    bounds: Sequence[int],
    out: torch.Tensor,
) -> None:
    """out (groups * m, n), a product for each group."""
    for rows, weight, a_scale, b_scale in zip(segments(bounds), b, a_scales, b_scales, strict=True):
        groupwise.block_scaled(a[rows], weight, a_scale, b_scale, out[rows])


@group_gemm_fp8_nt_groupwise.backend("triton", requires=groupwise.TRITON, ignores=("autotune", "mma_sm"))
def triton_kernel(case: GemmFlags, problem: Problem) -> Launch:
    """This project's Triton kernels: one for Hopper, one for the rest."""
    from flashinfer_perf.kernels.gemm_fp8_groupwise import gemm_fp8_groupwise

    kwargs = {**problem.tensors, "out": inputs.room(case, problem), "scale_major_mode": case.scale_major_mode}
    return Launch(gemm_fp8_groupwise, kwargs=kwargs, mutates=("out",))


@group_gemm_fp8_nt_groupwise.backend("torch", ignores=("autotune", "mma_sm"))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, dequantised to fp32 and multiplied, group by group."""
    kwargs = {
        **{name: tensor for name, tensor in problem.tensors.items() if name != "m_indptr"},
        "bounds": bounds_of(case),
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
    bounds: Sequence[int],
    out: torch.Tensor,
    tile: int,
    mode: str,
) -> None:
    """out (groups * m, n) of a (groups * m, k) and b (groups, n, k), scales as the mode has them."""
    a_rows, b_rows = groupwise.by_row(a_scale, mode), groupwise.by_row(b_scale, mode)
    for rows, weight, scale in zip(segments(bounds), b, b_rows, strict=True):
        groupwise.dequantised(a[rows], weight, a_rows[rows], scale, out[rows], tile)
