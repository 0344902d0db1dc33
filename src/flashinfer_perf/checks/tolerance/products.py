"""Matrix products in tensor cores."""

from __future__ import annotations

import math

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance.rounding import SAFETY, SMALLEST, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType

TENSOR_CORE_UNIT = {8: 2.0**-13, 16: 2.0**-22}
"""How much of a sum a tensor core loses with every term, at most and in parts of the sum, by the operands' bits.

It shifts the products to the exponent of the largest addend and cuts them off there. For 16 bits that is about fp32's
own precision; we allow two bits less, since cutting off is not rounding. For FP8 on Hopper 13 bits behind the point
are kept: DeepSeek-V3 (arXiv:2412.19437, section 3.3.2) found "around 14 bits". Nothing narrower is taken for newer
GPUs, nor for FP4 operands, though theirs may be better: that was not measured.
Measured on an H100 with cuBLAS, k = 7168, 4096 x 4096 outputs: beyond the output's rounding, the worst element erred by
0.68 of what this allows with FP8 and fast accumulation, by 0.015 of it without, by 0.17 with bfloat16.
"""
ENOUGH_FOR_A_NORM = 64
"""Outputs. The norm of fewer can be small by chance, and the relative error large with it."""


def for_product(
    k: int, output_dtype: DType, *, operand_bits: int, rms: float, outputs: int, promoted_every: int = 0
) -> Close:
    """Sums of k products in a tensor core, rounded to the output's format.

    The partial sums of k independent products of root mean square r grow like r * sqrt(terms). Each term adds an
    error that is spread evenly over one unit c of the sum so far, which makes c * r * k / sqrt(24) in the end, or
    0.2 * c * sqrt(k) in units of the output's own r * sqrt(k). Should the cuts all go one way, it is 0.24 * c * k / 32
    (an instruction adds 32 FP8 products at once), which is less than c * sqrt(k) up to k = 17,000. So an element may
    err by SAFETY * c * sqrt(k) of the typical output's size, whatever its own size is, and all together by a quarter
    of that beside the rounding of the output. Scales cannot hide in that: 3 % more on everything is found.

    Args:
        k: number of products in a sum.
        operand_bits: 8 for FP8 and below, 16 for bfloat16.
        rms: root mean square of a product of two operands, dequantised.
        outputs: how many elements the output has.
        promoted_every: after so many products the sum goes on in fp32, where the error is negligible.
    """
    unit = TENSOR_CORE_UNIT[operand_bits] * math.sqrt(min(k, promoted_every or k))
    unit += UNIT_ROUNDOFF[DType.FLOAT32] * math.sqrt(k)
    rounding = UNIT_ROUNDOFF[output_dtype]
    return Close(
        rtol=rounding,
        atol=SAFETY * unit * rms * math.sqrt(k) + SMALLEST[output_dtype] / 2,
        max_relative_l2=rounding + unit if outputs >= ENOUGH_FOR_A_NORM else math.inf,
        why=f"{output_dtype} of {k} products of {operand_bits}-bit operands in a tensor core",
    )
