"""Operands in NVFP4 and MXFP4, with block scales in the layout that kernels read, and what their product is."""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.checks.block_formats import MXFP4, NVFP4
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import mxfp4, nvfp4
from flashinfer_perf.formats.scale_layout import arrange, restore
from flashinfer_perf.formats.shuffle import shuffle_rows
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm import inputs, reference
from flashinfer_perf.routines.gemm.flags import GemmFlags
from flashinfer_perf.run.factory import TensorFactory

WEIGHT_LAYOUT = "128x4"
"""Of B's scales in every kernel."""


class Fp4Operand(NamedTuple):
    packed: torch.Tensor
    """(rows, k / 2) bytes."""
    scales: torch.Tensor
    """(padded rows, padded blocks) bytes, the layout's tiles one behind the other."""
    global_scale: torch.Tensor
    """fp32, no dimensions: what NVFP4's values were multiplied by, 2688 / amax; 1 in MXFP4."""


def format_of(case: GemmFlags) -> DType:
    return DType.NVFP4 if case.use_nvfp4 else DType.MXFP4


def block_of(case: GemmFlags) -> int:
    """Elements that share a scale."""
    return nvfp4.BLOCK if case.use_nvfp4 else mxfp4.BLOCK


def layout_of(case: GemmFlags) -> str:
    """Of A's scales."""
    return "128x4" if case.use_128x4_sf_layout else "8x4"


def operand(case: GemmFlags, make: TensorFactory, name: str, rows: int, layout: str) -> Fp4Operand:
    """(rows, k) standard normal numbers, quantised some rows at a time."""
    columns = case.k // block_of(case)
    make.reserve(name, (rows, case.k), format_of(case))
    make.reserve(f"{name}_scale", (rows, columns), DType.FP8_E4M3)
    scale = _global_scale(make, name, (rows, case.k)) if case.use_nvfp4 else torch.ones((), device=make.device)
    packed = torch.empty(rows, case.k // 2, dtype=torch.uint8, device=make.device)
    scales = torch.empty(rows, columns, dtype=torch.uint8, device=make.device)
    for part, drawn in inputs.drawn_rows(make, name, (rows, case.k)):
        packed[part], scales[part] = nvfp4.encode(drawn, scale) if case.use_nvfp4 else mxfp4.encode(drawn)
    return Fp4Operand(packed, arrange(scales, layout), scale)


def _global_scale(make: TensorFactory, name: str, shape: tuple[int, int]) -> torch.Tensor:
    """The generator gives the same numbers once more when they are quantised."""
    largest = torch.stack([drawn.abs().amax() for _, drawn in inputs.drawn_rows(make, name, shape)]).amax()
    return nvfp4.LARGEST / largest.float()


def shuffled(packed: torch.Tensor, scales: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B as TensorRT-LLM's kernels read it: rows of elements and of scales shuffled alike.

    Args:
        columns: blocks in a row.
    """
    linear = restore(scales, WEIGHT_LAYOUT, (len(packed), columns))
    return shuffle_rows(packed), arrange(shuffle_rows(linear), WEIGHT_LAYOUT)


def row_by_row(scales: torch.Tensor, packed: torch.Tensor, layout: str, block: int) -> torch.Tensor:
    """(rows, blocks) of scales in a layout, of packed (rows, k / 2)."""
    return restore(scales, layout, (len(packed), 2 * packed.shape[1] // block))


def truth(
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor,
    use_nvfp4: bool,
    layout: str,
) -> dict[str, torch.Tensor]:
    """(m, n) in fp32: alpha * A B^T."""
    format = NVFP4 if use_nvfp4 else MXFP4
    rows = reference.block_scaled(a, row_by_row(a_scale, a, layout, format.block), format)
    columns = reference.block_scaled(b, row_by_row(b_scale, b, WEIGHT_LAYOUT, format.block), format)
    into = torch.empty(len(a), len(b), device=a.device)
    return {"out": reference.product(rows, columns, into, 2 * a.shape[1]).mul_(alpha)}
