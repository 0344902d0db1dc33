"""Operands in MXFP8 with E8M0 scales in 128x4 tiles, as FlashInfer's quantiser gives them."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.block_formats import MXFP8
from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import case_rule
from flashinfer_perf.core.routine import Rule
from flashinfer_perf.formats import mxfp8
from flashinfer_perf.formats.mxfp8 import Mxfp8
from flashinfer_perf.formats.scale_layout import arrange, restore
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm import inputs, reference
from flashinfer_perf.routines.gemm.flags import GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Shown

LAYOUT = "128x4"
RULE = Rule(lambda case: case.k % mxfp8.BLOCK == 0, "k ({k}) must be divisible by the block, 32")
whole_tiles = case_rule(
    "n and k of 128 or more",
    lambda case: case.n >= 128 and case.k >= 128,
    "FlashInfer demands an n and a k of 128 or more: below, its kernels gave NaN and infinities",
)


def operand(make: TensorFactory, name: str, rows: int, k: int) -> Mxfp8:
    """(rows, k) standard normal numbers quantised some rows at a time, and the flat bytes of their scales."""
    make.reserve(name, (rows, k), DType.FP8_E4M3)
    make.reserve(f"{name}_scale", (rows, k // mxfp8.BLOCK), DType.FP8_E4M3)
    elements = torch.empty(rows, k, dtype=DType.FP8_E4M3.torch, device=make.device)
    scales = torch.empty(rows, k // mxfp8.BLOCK, dtype=torch.uint8, device=make.device)
    for part, drawn in inputs.drawn_rows(make, name, (rows, k)):
        elements[part], scales[part] = mxfp8.encode(drawn)
    return Mxfp8(elements, arrange(scales, LAYOUT).flatten())


def linear(scales: torch.Tensor, rows: int, k: int) -> torch.Tensor:
    """(rows, blocks) of the flat bytes."""
    return restore(scales, LAYOUT, (rows, k // mxfp8.BLOCK))


def check(case: GemmFlags, count: int = 1) -> Close:
    return tolerance.for_product(case.k, case.out_dtype, operand_bits=8, rms=1.0, outputs=count * case.m * case.n)


def shown(tensors: Mapping[str, torch.Tensor]) -> tuple[Shown, ...]:
    """The documented lines."""
    names = {"a": "input_mxfp8", "b": "mat2_mxfp8", "a_scale": "input_scale", "b_scale": "mat2_scale"}
    lines = [(name, tensors[key]) for key, name in names.items()]
    return tuple(Shown(f"{name}.{what}", getattr(t, what)) for name, t in lines for what in ("shape", "dtype"))


def product(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor) -> torch.Tensor:
    """(m, n) in fp32 of A (m, k) and B (n, k), a part at a time; scales are (rows, blocks)."""
    rows = reference.block_scaled(a, a_scale, MXFP8)
    columns = reference.block_scaled(b, b_scale, MXFP8)
    return reference.product(rows, columns, torch.empty(len(a), len(b), device=a.device), a.shape[1])
