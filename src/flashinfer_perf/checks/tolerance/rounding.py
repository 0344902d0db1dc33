"""Roundings: what a number's format loses, once or in a row.

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
    DType.NVFP4: 2.0**-2,  # of its elements, which have two significant bits
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

RMS_ROUNDING = math.sqrt(1 / (8 * math.log(2)))
"""Root mean square of the relative error of a rounding to nearest, in u: 0.42. It is u times a number spread evenly
over -1 … 1, divided by a significand whose logarithm is spread evenly over 1 … 2; the mean of 1 / m^2 is 3 / (8 ln 2).
"""

EXACT = Close(rtol=0.0, atol=0.0, max_relative_l2=0.0, why="bit for bit")
"""Values that are copied."""


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
        max_relative_l2=math.inf,  # follows from the elements' bounds, save where they are as small as atol
        why=f"{roundings} rounding(s) to {dtype} of a sum of {reduction} fp32 terms",
    )


def for_rows(
    dtype: DType, typical: float, why: str, *, worst: float = 6.0, spread: float = 1.7, roundings: int = 1
) -> Close:
    """Errors that add up independently, relative to what a row's elements typically are.

    Args:
        dtype: of the output, which is rounded at the end.
        typical: error of an element, relative to the root mean square of its row.
        worst: of millions of elements, in units of the typical error: six standard deviations.
        spread: by how much a whole row's error may exceed the typical one, as rows of few terms fluctuate.
        roundings: of the element itself, each of which errs the more the larger it is: by a unit at most, and many of
            them by six standard deviations of their sum.
    """
    unit = UNIT_ROUNDOFF[dtype]
    return Close(
        rtol=min(roundings, 6 * RMS_ROUNDING * math.sqrt(roundings)) * unit,
        atol=SMALLEST[dtype],
        of_row=worst * typical,
        max_relative_l2=spread * typical + unit,
        by_row=True,
        why=why,
    )
