"""FLOPs and bytes of the quantisation family, by the documented formulas."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work

FLOPS = 3
"""Of an element, by the documents' convention: maximum, product, rounding."""


def quantise(elements: int, input_dtype: DType, element_bits: int, scales: int, global_scale: bool = False) -> Work:
    """Reads the input and a global scale if there is one; writes elements and scales.

    Args:
        element_bits: of a quantised element, 4 or 8.
        scales: of a byte each, how many the documents count: one to a block without padding, for MXFP8 one to
            ``alignment`` elements.
    """
    read = elements * input_dtype.bytes + (DType.FLOAT32.bytes if global_scale else 0)
    return Work(FLOPS * elements, read + elements * element_bits // 8 + scales)
