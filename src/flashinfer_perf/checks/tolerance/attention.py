"""Attention: two products with a softmax between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flashinfer_perf.checks.close import Close
from flashinfer_perf.checks.tolerance.rounding import RMS_ROUNDING, UNIT_ROUNDOFF, for_rows
from flashinfer_perf.core.dtypes import DType

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
    typical = RMS_ROUNDING * math.sqrt(ATTENTION_ROUNDINGS) * max(UNIT_ROUNDOFF[dtype] for dtype in operands)
    formats = " and ".join(dict.fromkeys(map(str, operands)))
    return for_rows(output_dtype, typical, f"intermediate results in {formats}, output in {output_dtype}")
