"""Quantised outputs: codes of elements and of their scales."""

from __future__ import annotations

import math

from flashinfer_perf.checks.block_formats import FORMATS, BlockFormat
from flashinfer_perf.checks.fp4_blocks import BlockElements, BlockScales
from flashinfer_perf.checks.quantised_blocks import Placed, QuantisedElements, QuantisedScales
from flashinfer_perf.checks.tolerance.rounding import SAFETY, UNIT_ROUNDOFF
from flashinfer_perf.core.dtypes import DType

MEAN_ROUNDING = math.log(2) / 2
"""Mean relative error of a rounding to nearest, in u: a quarter of the distance between numbers, u / 2 at 1, divided
by a significand that is spread evenly over 1 … 2.
"""
TIES_PER_UNIT = {DType.NVFP4: 8 / math.log(2), DType.MXFP4: 1 / math.log(2)}
"""Where a scale goes from one code to the next, per unit of its natural logarithm: e4m3 has eight numbers to a factor
of two, e8m0 has one.
"""
TIES_OF_ELEMENTS = 7 / math.log(6 / 0.25)
"""The same of E2M1: seven ties between 0.25 and 6."""
MARGIN = 3.0
"""Factor on the mean number of codes that cross a tie: values crowd about some ties more than about others."""
MAX_LOSS = 1.25
"""Quantisation error in units of exact arithmetic's: a block whose scale is the neighbouring one loses up to half as
much again, but few are, and where they are the two were as near.
"""


def for_fp4_scales(format: DType, input_dtype: DType, roundings: int, swizzled: bool = False) -> BlockScales:
    """Block scales of values that were rounded to ``input_dtype`` that often on their way."""
    fraction = MARGIN * TIES_PER_UNIT[format] * _mean_error(input_dtype, roundings)
    return BlockScales(FORMATS[format], swizzled, fraction)


def for_fp4_elements(
    format: DType, input_dtype: DType, roundings: int, scales: str, swizzled: bool = False
) -> BlockElements:
    """E2M1 elements with those scales, which the output named ``scales`` holds."""
    fraction = MARGIN * TIES_OF_ELEMENTS * _mean_error(input_dtype, roundings)
    return BlockElements(FORMATS[format], scales, MAX_LOSS, swizzled=swizzled, max_fraction=fraction)


QUANTISERS_REACH = 8 * UNIT_ROUNDOFF[DType.FLOAT32]
"""How far fp32 may be off what a quantiser rounds. A scale: reciprocal of the largest element, wrong by 2 u, and two
products; an element: reciprocal of the global scale, product, reciprocal of that, product, 6 u. Two for the truth.
"""


def for_quantised_scales(format: BlockFormat, placed: Placed) -> QuantisedScales:
    """Block scales of 16-bit values that a kernel has as they are."""
    return QuantisedScales(format, placed, QUANTISERS_REACH)


def for_quantised_elements(
    format: BlockFormat, placed: Placed, scales: str, global_scale: float = 1.0
) -> QuantisedElements:
    """Elements with those scales, which the output named ``scales`` holds."""
    power_of_two = math.frexp(global_scale)[0] == 0.5
    return QuantisedElements(
        format, scales, MAX_LOSS, placed=placed, reach=QUANTISERS_REACH, exact_global_scale=power_of_two
    )


ROUND_TRIP = 0.5
"""Absolute and relative, of the documents' count of elements that a round trip through an MX format moves far. It is
printed and judges nothing: an element of half a block's largest, decoded as 0, is not far by it.
"""


def _mean_error(input_dtype: DType, roundings: int) -> float:
    """Of roundings to a format and of fp32 arithmetic around them, relative."""
    return MEAN_ROUNDING * roundings * UNIT_ROUNDOFF[input_dtype] + SAFETY * UNIT_ROUNDOFF[DType.FLOAT32]
