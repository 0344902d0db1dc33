"""What goes from rank to rank: sums of theirs, and hidden states in a wire's format."""

from __future__ import annotations

import math

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance.rounding import RMS_ROUNDING, UNIT_ROUNDOFF, for_rows
from flashinfer_perf.core.dtypes import DType

PAYLOAD_ERROR = {
    None: 0.0,
    "fp8": UNIT_ROUNDOFF[DType.FP8_E4M3],
    "fp8_block_scale": UNIT_ROUNDOFF[DType.FP8_E4M3],
    "nvfp4": UNIT_ROUNDOFF[DType.NVFP4],
}
"""Relative L2 norm of what quantising hidden states for the wire may lose: that of an error of every element by the
unit roundoff of the elements' format, E4M3 or E2M1. What falls below the smallest normal number errs by more,
relatively, but weighs little.
"""


def for_sum_of_ranks(dtype: DType, roundings: int) -> Close:
    """A sum over ranks whose partial sums are rounded to ``dtype``, in any order, and what is worked out from it.

    As in ``for_attention``: errors of roundings add up independently, relative to a row's root mean square, and the
    worst of millions of elements is six times the typical one away. An element that is far larger than its row's was so
    at each rounding. A rank that is left out is two hundred times the typical error for 2 ranks, 67 times for 8.

    Args:
        roundings: to the format, from the addends to the output.
    """
    typical = RMS_ROUNDING * math.sqrt(roundings) * UNIT_ROUNDOFF[dtype]
    return for_rows(dtype, typical, f"{roundings} roundings to {dtype} of sums over ranks", roundings=roundings)
