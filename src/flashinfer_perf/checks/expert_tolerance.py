"""Tolerances of mixtures of experts whose kernels round activations on the way, with their reasons."""

from __future__ import annotations

import math

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance import RMS_ROUNDING, SMALLEST, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType

ROUNDING_NOISE = {
    DType.FLOAT16: 2 * RMS_ROUNDING * UNIT_ROUNDOFF[DType.FLOAT16],
    DType.FP8_E4M3: RMS_ROUNDING * UNIT_ROUNDOFF[DType.FP8_E4M3],
    DType.NVFP4: 0.0954,
}
"""Root mean square error of normal numbers in a format, relative to their own. In NVFP4 the scales of their blocks are
rounded, too: 0.0954 is what exact arithmetic makes of a quarter of a million. In fp16 kernels may round twice where
we count once: partial sums of a split product, and what an expert gives before it is weighted.
"""
GAIN = math.sqrt(1 + 1.5**2)
"""How much of the noise of activations that are rounded before each of an expert's two products reaches its output. In
silu(gate) * up a relative error of both factors, which are independent, comes out 1.5 times as large for normal gates;
the second rounding adds one. Measured with experts of 1024 x 512: 1.75 in FP8 and 1.72 in NVFP4.
"""
SPREAD = 2.2
"""The worst token's error in units of the typical one. It is largest where few experts, or narrow ones, leave little to
average: 1.75 among 2048 tokens of two experts each, 128 x 256.
"""
WORST_ELEMENT = 8
"""The worst of millions of elements in units of the typical one: six standard deviations, and tokens with more noise
than others. Measured on the same experts: 6.1 among a quarter of a million.
"""


def for_experts(activations: DType, output_dtype: DType) -> Close:
    """A gated mixture of experts over weights as they are, with activations rounded to a format on the way.

    Args:
        activations: the coarsest format that a kernel rounds the input and the intermediate result to.
    """
    typical = GAIN * ROUNDING_NOISE[activations]
    return Close(
        rtol=UNIT_ROUNDOFF[output_dtype],
        atol=SMALLEST[output_dtype],
        of_row=WORST_ELEMENT * typical,
        max_relative_l2=SPREAD * typical + UNIT_ROUNDOFF[output_dtype],
        by_row=True,
        why=f"activations in {activations} before two products, output in {output_dtype}",
    )
