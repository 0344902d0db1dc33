"""Probabilities of a vocabulary: softmax, and what is too near to a threshold to say."""

from __future__ import annotations

import math

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance.rounding import SAFETY, SMALLEST, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType


def for_softmax(terms: int, largest: float) -> Close:
    """exp(x) / sum of exp(x) in fp32, with no absolute tolerance that could hide small probabilities.

    An exponent x - max x is wrong by two roundings of numbers up to twice as large as x, so its exponential by as much
    relatively; the sum is that of positive terms. Probabilities below the smallest normal number may be zero.

    Args:
        terms: length of a row.
        largest: magnitude of the exponents.
    """
    unit = UNIT_ROUNDOFF[DType.FLOAT32]
    return Close(
        rtol=SAFETY * unit * (math.sqrt(terms) + 2 * largest),
        atol=2.0**-126,
        max_relative_l2=math.inf,
        why=f"fp32 exponentials of numbers up to {largest:.3g}, a sum of {terms}",
    )


ZONE = 1e-5
"""How near to a threshold a probability mass, or a probability relative to it, is too near to say: fp32 sums of a
vocabulary err by a few 1e-6.
"""
NEIGHBOURS = 3.0
"""Roundings of 16-bit probabilities, in u: each errs by one, and two that are nearer than two u may change places."""


def slack_of(dtype: DType, vocabulary: int) -> float:
    """How far, relatively, probabilities may be off that a library works out of logits, in their own format.

    float16 has no small numbers: with 128256 tokens, one a quarter as probable as the average is rounded by 1.5 %.
    Tokens less probable than that hold little mass.
    """
    if dtype is DType.FLOAT32:
        return 0.0
    return NEIGHBOURS * max(UNIT_ROUNDOFF[dtype], SMALLEST[dtype] / 2 * 4 * vocabulary)
