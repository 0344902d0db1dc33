"""FLOPs and bytes of the norm family, by the documented formulas."""

from __future__ import annotations

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.norm.flags import NormFlags


def add_rms_norm_quant(case: NormFlags) -> Work:
    """6 FLOPs an element; reads x, residual, weight, writes residual and the quantised output."""
    elements = case.batch_size * case.hidden_size
    moved = 3 * elements + case.hidden_size
    return Work(flops=6 * elements, bytes=moved * case.input_dtype.bytes + elements * case.out_dtype.bytes)
