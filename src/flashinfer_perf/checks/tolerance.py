"""Every tolerance of the program, with its reason.

u is the unit roundoff of a format: half the distance from 1 to the next number, the largest relative error of one
rounding to nearest. Formulas: Higham, Accuracy and Stability of Numerical Algorithms, sections 2.2 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flashinfer_perf.checks.block_formats import FORMATS, BlockFormat
from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.fp4_blocks import BlockElements, BlockScales
from flashinfer_perf.checks.quantised_blocks import Placed, QuantisedElements, QuantisedScales
from flashinfer_perf.checks.rotated import Rotated, RotatedHeads
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch

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
        max_relative_l2=math.inf,  # follows from the elements' bounds, save where they are as small as atol
        why=f"{roundings} rounding(s) to {dtype} of a sum of {reduction} fp32 terms",
    )


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


PAYLOAD_ERROR = {None: 0.0, "fp8": 2.0**-4, "fp8_block_scale": 2.0**-4, "nvfp4": 2.0**-2}
"""Relative L2 norm of what quantising hidden states for the wire may lose: that of an error of every element by the
unit roundoff of the elements' format, E4M3 or E2M1. What falls below the smallest normal number errs by more,
relatively, but weighs little.
"""


EXACT = Close(rtol=0.0, atol=0.0, max_relative_l2=0.0, why="bit for bit")
"""Values that are copied."""


RMS_ROUNDING = math.sqrt(1 / (8 * math.log(2)))
"""Root mean square of the relative error of a rounding to nearest, in u: 0.42. It is u times a number spread evenly
over -1 … 1, divided by a significand whose logarithm is spread evenly over 1 … 2; the mean of 1 / m^2 is 3 / (8 ln 2).
"""
ATTENTION_ROUNDINGS = 8
"""Independent roundings on the way to an output, at most: of probabilities, of the partial results of splits, and of
queries where a kernel converts them. XQA, the coarsest of the kernels measured, has so many; others have one or two.
"""


def for_attention(operands: Sequence[DType], output_dtype: DType) -> Close:
    """Softmax(q k) v with intermediate results rounded to the coarsest of the operands' formats.

    A weighted sum of values whose terms err independently errs by as much, relatively, as a term does: a row's error
    has typically 0.42 sqrt(8) u of the row's norm. The norm may be 1.7 times that, as rows of few keys fluctuate.
    The worst of millions of elements is six times the typical one away, and typical for an element is the rms of its
    row. Where FP8 keys and values meet 16-bit queries, kernels may round queries and probabilities to FP8, too (XQA on
    Hopper does).

    Args:
        operands: formats of query, keys and values.
    """
    operand, output = max(UNIT_ROUNDOFF[dtype] for dtype in operands), UNIT_ROUNDOFF[output_dtype]
    typical = RMS_ROUNDING * math.sqrt(ATTENTION_ROUNDINGS) * operand
    return Close(
        rtol=output,
        atol=SMALLEST[output_dtype],
        of_row=6 * typical,
        max_relative_l2=1.7 * typical + output,
        by_row=True,
        why=f"intermediate results in {' and '.join(dict.fromkeys(map(str, operands)))}, output in {output_dtype}",
    )


def for_sum_of_ranks(dtype: DType, roundings: int) -> Close:
    """A sum over ranks whose partial sums are rounded to ``dtype``, in any order, and what is worked out from it.

    As in ``for_attention``: errors of roundings add up independently, relative to a row's root mean square, and the
    worst of millions of elements is six times the typical one away. A rank that is left out is a hundred times that.

    Args:
        roundings: to the format, from the addends to the output.
    """
    unit = UNIT_ROUNDOFF[dtype]
    typical = RMS_ROUNDING * math.sqrt(roundings) * unit
    return Close(
        rtol=unit,
        atol=SMALLEST[dtype],
        of_row=6 * typical,
        max_relative_l2=1.7 * typical + unit,
        by_row=True,
        why=f"{roundings} roundings to {dtype} of sums over ranks",
    )


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


ROUTING_SLACK = 16 * UNIT_ROUNDOFF[DType.FLOAT32]
"""Absolute. Scores are sigmoids in fp32 (4 u with an accurate tanh) plus a bias, those of groups sums of two of them;
softmax probabilities err by as much relatively, which is an error of the logit. Two scores may be off.
"""
MIXTURE_ROUNDINGS = 5
"""To 16 bits on the way of a routed token: of the first product, twice where up and gate are rounded by themselves, of
the second, of the routing weight, and of the sum where it is kept in 16 bits.
"""
E2M1_ROUNDOFF = 2.0**-2
"""Of NVFP4's elements, which have two significant bits."""


def for_mixture(between: DType, sizes: Sequence[int], input_dtype: DType, more_roundings: int = 0) -> Close:
    """A weighted sum of experts, each two products with an activation between them.

    What goes into the second product is rounded to ``between``. The terms of a sum err independently, so the sum errs
    by as much, relatively, as a term does: 0.42 u of a row's norm, once for that rounding and five times for 16 bits;
    and each product errs as ``for_product`` says. An element may be six times the typical one's error away, as in
    ``for_attention``. A row's norm fluctuates the more the fewer terms make up a sum: those of an activation are
    products of normal numbers, a ninth of which count. Of 4096 tokens the worst was 1.9 times the typical one with 64
    terms, 1.8 times with 128; 1.5 + 6 / sqrt(terms) leaves a fifth beyond.

    Args:
        between: of the second product's input: the 16-bit format, FP8, or NVFP4.
        sizes: of the sums: hidden and intermediate size.
        more_roundings: to 16 bits, beside those that every mixture has.
    """
    rounding = E2M1_ROUNDOFF if between is DType.NVFP4 else UNIT_ROUNDOFF[between]
    sixteen = UNIT_ROUNDOFF[input_dtype]
    cores = sum(TENSOR_CORE_UNIT[16 if between is input_dtype else 8] * math.sqrt(size) for size in sizes)
    typical = RMS_ROUNDING * math.hypot(rounding, math.sqrt(MIXTURE_ROUNDINGS + more_roundings) * sixteen) + cores
    return Close(
        rtol=sixteen,
        atol=SMALLEST[input_dtype],
        of_row=6 * typical,
        max_relative_l2=(1.5 + 6 / math.sqrt(sizes[1])) * typical + sixteen,
        by_row=True,
        why=f"experts of sizes {' and '.join(map(str, sizes))} with {between} between the products",
    )
