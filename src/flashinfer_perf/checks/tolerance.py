"""Every tolerance of the program, with its reason.

u is the unit roundoff of a format: half the distance from 1 to the next number, the largest relative error of one
rounding to nearest. Formulas: Higham, Accuracy and Stability of Numerical Algorithms, sections 2.2 and 3.1.
"""

from __future__ import annotations

import math

from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.dtypes import DType

UNIT_ROUNDOFF = {
    DType.FLOAT64: 2.0**-53,
    DType.FLOAT32: 2.0**-24,
    DType.FLOAT16: 2.0**-11,
    DType.BFLOAT16: 2.0**-8,
    DType.FP8_E4M3: 2.0**-4,
    DType.FP8_E5M2: 2.0**-3,
}
SMALLEST = {
    DType.FLOAT64: 2.0**-1074,
    DType.FLOAT32: 2.0**-149,
    DType.FLOAT16: 2.0**-24,
    DType.BFLOAT16: 2.0**-133,
    DType.FP8_E4M3: 2.0**-9,
    DType.FP8_E5M2: 2.0**-16,
}
"""Smallest positive number of each format; rounding near zero errs by half of it."""

SAFETY = 4.0
"""Factor on the statistical error of a sum, sqrt(n) * u: four standard deviations, and fast-math functions that err
by a few units in the last place."""


def for_rounding(dtype: DType, reduction: int = 1, roundings: int = 1) -> Close:
    """Exact mathematics in fp32, rounded to ``dtype`` on the way and at the end.

    Args:
        dtype: of the output.
        reduction: length of the longest fp32 sum that goes into an element as a factor.
        roundings: how often an element's value is rounded to ``dtype`` in a row.
    """
    arithmetic = SAFETY * math.sqrt(reduction) * UNIT_ROUNDOFF[DType.FLOAT32]
    rtol = roundings * UNIT_ROUNDOFF[dtype] + arithmetic
    return Close(
        rtol=rtol,
        atol=SMALLEST[dtype] / 2,
        max_relative_l2=rtol,
        why=f"{roundings} rounding(s) to {dtype} of a sum of {reduction} fp32 terms",
    )


def for_attention(q_dtype: DType, output_dtype: DType, value_rms: float = 1.0) -> Close:
    """Softmax(q k) v with probabilities rounded to the operands' format before the second product.

    Each probability errs by at most u relatively, so an output errs by at most u * sum(p * |v|) <= u * |v|_max, and
    typically by u * rms(v) * sqrt(sum p^2). Four typical errors of the worst case (one dominant key) are allowed to
    an element; all elements together stay near the typical one.

    Args:
        value_rms: root mean square of the values' elements.
    """
    operand, output = UNIT_ROUNDOFF[q_dtype], UNIT_ROUNDOFF[output_dtype]
    return Close(
        rtol=SAFETY * operand + output,
        atol=SAFETY * operand * value_rms,
        max_relative_l2=2 * (operand + output),
        why=f"probabilities in {q_dtype}, output in {output_dtype}, values of rms {value_rms:.3g}",
    )
