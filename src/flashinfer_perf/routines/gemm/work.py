"""FLOPs and bytes of the GEMM family, by the documented formulas, which count no scales."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.gemm.flags import GemmFlags


def products(case: GemmFlags, a: DType, b: DType, count: int = 1) -> Work:
    """``count`` products of (m, k) and (n, k): 2 m n k operations each; reads both operands, writes the output."""
    m, n, k = case.m, case.n, case.k
    moved = m * k * a.bytes + n * k * b.bytes + m * n * case.out_dtype.bytes
    return Work(count * 2 * m * n * k, count * moved)


def product_with_bias(case: GemmFlags) -> Work:
    """Of bfloat16 operands. The bias is one more operation for each output, and n more numbers to read."""
    plain = products(case, DType.BFLOAT16, DType.BFLOAT16)
    if not case.bias:
        return plain
    return Work(plain.flops + case.m * case.n, plain.bytes + case.n * DType.BFLOAT16.bytes)
