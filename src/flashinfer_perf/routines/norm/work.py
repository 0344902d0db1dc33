"""FLOPs and bytes of the norm family, by the documented formulas."""

from __future__ import annotations

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.norm.flags import NormFlags

FLOPS = 5
"""Of an element: square, sum, two products, and what the mean costs; an addition of a residual is one more."""


def elements(case: NormFlags) -> int:
    """Of the input."""
    return case.batch_size * (case.num_heads or 1) * case.hidden_size


def rms_norm(case: NormFlags) -> Work:
    """Reads x and weight, writes as much as x."""
    return Work(FLOPS * elements(case), (2 * elements(case) + case.hidden_size) * case.input_dtype.bytes)


def rms_norm_quant(case: NormFlags) -> Work:
    """Reads x and weight, writes the quantised output."""
    return Work(FLOPS * elements(case), _read(case) + elements(case) * case.out_dtype.bytes)


def add_rms_norm(case: NormFlags) -> Work:
    """Reads x, residual and weight, writes both inputs anew."""
    moved = (4 * elements(case) + case.hidden_size) * case.input_dtype.bytes
    return Work((FLOPS + 1) * elements(case), moved)


def add_rms_norm_quant(case: NormFlags) -> Work:
    """Reads x, residual and weight, writes residual and the quantised output."""
    written = elements(case) * (case.input_dtype.bytes + case.out_dtype.bytes)
    return Work((FLOPS + 1) * elements(case), _read(case, inputs=2) + written)


def rms_norm_fp4(case: NormFlags, block: int) -> Work:
    """Reads x and weight, writes half a byte for each element and a byte for each block."""
    return Work(FLOPS * elements(case), _read(case) + _fp4(case, block))


def add_rms_norm_fp4(case: NormFlags, block: int) -> Work:
    """Reads x, residual and weight, writes residual, elements, and scales in one layout or both."""
    written = elements(case) * case.input_dtype.bytes + _fp4(case, block, 1 + case.output_both_sf_layouts)
    return Work((FLOPS + 1) * elements(case), _read(case, inputs=2) + written)


def _read(case: NormFlags, inputs: int = 1) -> float:
    return (inputs * elements(case) + case.hidden_size) * case.input_dtype.bytes


def _fp4(case: NormFlags, block: int, layouts: int = 1) -> int:
    return elements(case) // 2 + layouts * (elements(case) // block)
