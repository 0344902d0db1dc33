"""Mixtures of experts: routing, and two products with an activation between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance.products import TENSOR_CORE_UNIT
from flashinfer_perf.checks.tolerance.rounding import RMS_ROUNDING, UNIT_ROUNDOFF, for_rows
from flashinfer_perf.core.dtypes import DType

ROUTING_SLACK = 16 * UNIT_ROUNDOFF[DType.FLOAT32]
"""Absolute. Scores are sigmoids in fp32 (4 u with an accurate tanh) plus a bias, those of groups sums of two of them;
softmax probabilities err by as much relatively, which is an error of the logit. Two scores may be off.
"""
MIXTURE_ROUNDINGS = 5
"""To 16 bits on the way of a routed token: of the first product, twice where up and gate are rounded by themselves, of
the second, of the routing weight, and of the sum where it is kept in 16 bits.
"""
NVFP4_NOISE = 0.0954
"""Root mean square error of normal numbers in NVFP4, relative to their own: what exact arithmetic makes of a quarter of
a million. It is nine tenths of 0.42 u, as the largest element of a block is nearly exact.
"""
FIRST_GAIN = 1.5
"""How much of the noise on the first product's input reaches the output. In silu(gate) * up a relative error of both
factors, which are independent, comes out 1.5 times as large for normal gates. Worked out in PyTorch for experts of
128 x 64 to 1024 x 512, in bfloat16, FP8 and NVFP4, the whole error is 0.94 to 1.00 of what this predicts with the
rounding in between.
"""
WORST_ELEMENT = 8
"""The worst of millions of elements in units of the typical one: six standard deviations, and tokens with more noise
than others. The worst of a quarter of a million was 7.1 away where 64 terms make up a sum, else 5.6.
"""


def for_mixture(
    activations: DType,
    sizes: Sequence[int],
    output_dtype: DType,
    *,
    before_both: bool = False,
    more_roundings: int = 0,
) -> Close:
    """A weighted sum of experts, each two products with an activation between them, over weights as they are.

    The terms of a sum err independently, so the sum errs by as much, relatively, as a term does: 0.42 u of a row's
    norm for each rounding. The second product's input is rounded to the activations' format; the first one's may be,
    which counts ``FIRST_GAIN`` times; and what is kept in 16 bits on the way is rounded to them five times. Each
    product errs as ``for_product`` says. A row's norm fluctuates the more the fewer terms make up a sum: those of an
    activation are products of normal numbers, a ninth of which count. Of 2048 tokens of one expert the worst was 2.3
    times the typical one with 64 terms, 1.6 times with 256, 1.3 times with 1024; 1.5 + 8 / sqrt(terms) leaves a
    twentieth and more beyond.

    Args:
        activations: the 16-bit format, FP8, or NVFP4: the coarsest one that a backend may round them to.
        sizes: of the sums: hidden and intermediate size.
        output_dtype: the 16-bit format.
        before_both: a kernel rounds the first product's input, too; else that is exact in the format as it is.
        more_roundings: to 16 bits, of sums that are kept in them, beside those that every mixture has.
    """
    sixteen = UNIT_ROUNDOFF[output_dtype]
    noise = NVFP4_NOISE if activations is DType.NVFP4 else RMS_ROUNDING * UNIT_ROUNDOFF[activations]
    quantised = noise * math.hypot(1.0, FIRST_GAIN if before_both else 0.0)
    kept = RMS_ROUNDING * sixteen * math.sqrt(MIXTURE_ROUNDINGS + more_roundings)
    unit = TENSOR_CORE_UNIT[16 if activations is output_dtype else 8]
    typical = math.hypot(quantised, kept) + sum(unit * math.sqrt(size) for size in sizes)
    where = "before both products" if before_both else "between the products"
    why = f"experts of sizes {' and '.join(map(str, sizes))} with {activations} {where}"
    spread = 1.5 + 8 / math.sqrt(sizes[1])
    return for_rows(output_dtype, typical, why, worst=WORST_ELEMENT, spread=spread, roundings=1 + more_roundings)
