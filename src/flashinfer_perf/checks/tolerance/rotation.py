"""Rotary embeddings: angles in fp32, then one rounding."""

from __future__ import annotations

import math

from flashinfer_perf.checks.rotated import Rotated, RotatedHeads
from flashinfer_perf.checks.tolerance.rounding import SAFETY, SMALLEST, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch

ANGLE_UNITS = 10
"""Relative error of an angle in fp32, in u: 1 for position times frequency; 2 for the sine's reduction to one turn (PTX
ISA, sin.approx: 2^-14.7 at 100 pi); 3 for the power of two (2^-22.5) and 4 for scaling and blending the frequency.
"""
ANGLE_UNITS_PER_OCTAVE = 5
"""The same for each factor of 2 between a frequency and 1. It is 2^(y log2 theta), so errors of the exponent count as
much as it is large: logarithm 4 u (two units in the last place, CUDA C++ Programming Guide, __log2f), y and the product
1 u each, times ln 2.
"""
LEAST_ANGLE_ERROR = 2.0**-20.5 + 4 * UNIT_ROUNDOFF[DType.FLOAT32]
"""Radians: of sine and cosine within a turn (PTX ISA, sin.approx), and of two products and their sum."""
LARGEST_ANGLE_ERROR = 0.25
"""Radians. Beyond it a kernel is wrong, however far the position: neighbours are at most 1 apart."""
CACHED_ANGLE_ERROR = 4 * UNIT_ROUNDOFF[DType.FLOAT32]
"""Radians, where cosine and sine are given: of two products and their sum."""


def angle_error(plain: torch.Tensor, scaled: torch.Tensor, sensitivity: torch.Tensor) -> torch.Tensor:
    """Radians per position by which a kernel's angles may be off that computes them in fp32 with fast functions.

    Args:
        plain, scaled: frequencies before and after scaling, (pairs,) in radians per position.
        sensitivity: relative change of the scaled ones per relative change of the plain ones.
    """
    units = (ANGLE_UNITS + ANGLE_UNITS_PER_OCTAVE * plain.log2().abs()) * sensitivity
    return scaled * units * UNIT_ROUNDOFF[DType.FLOAT32]


def for_rotation(
    dtype: DType, heads: RotatedHeads, positions: torch.Tensor, angle_error: torch.Tensor | None = None
) -> Rotated:
    """Pairs rotated in fp32 and rounded once; dimensions without rotation are copied.

    Args:
        dtype: of input and output.
        heads: where the pairs are.
        positions: (tokens,).
        angle_error: (pairs,) radians per position; None where cosine and sine are given.
    """
    cached = angle_error is None
    return Rotated(
        rtol=UNIT_ROUNDOFF[dtype] + SAFETY * UNIT_ROUNDOFF[DType.FLOAT32],
        atol=SMALLEST[dtype] / 2,
        max_relative_l2=math.inf,  # follows from the elements' bounds
        why=f"one rounding to {dtype} of a rotation whose angle is {'given' if cached else 'computed in fp32'}",
        heads=heads,
        positions=positions,
        angle_error=torch.zeros(1, device=positions.device) if angle_error is None else angle_error,
        least_angle_error=CACHED_ANGLE_ERROR if cached else LEAST_ANGLE_ERROR,
        largest_angle_error=LARGEST_ANGLE_ERROR,
    )
