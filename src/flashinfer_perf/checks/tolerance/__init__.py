"""Every tolerance of the program, with its reason: a file for each kind of kernel, and one for roundings themselves."""

from __future__ import annotations

from flashinfer_perf.checks.tolerance.attention import for_attention
from flashinfer_perf.checks.tolerance.experts import ROUTING_SLACK, for_mixture
from flashinfer_perf.checks.tolerance.probabilities import ZONE, for_softmax, slack_of
from flashinfer_perf.checks.tolerance.products import for_product
from flashinfer_perf.checks.tolerance.quantised import (
    ROUND_TRIP,
    for_fp4_elements,
    for_fp4_scales,
    for_quantised_elements,
    for_quantised_scales,
)
from flashinfer_perf.checks.tolerance.ranks import PAYLOAD_ERROR, for_sum_of_ranks
from flashinfer_perf.checks.tolerance.rotation import angle_error, for_rotation
from flashinfer_perf.checks.tolerance.rounding import EXACT, for_rounding

__all__ = [
    "EXACT",
    "PAYLOAD_ERROR",
    "ROUND_TRIP",
    "ROUTING_SLACK",
    "ZONE",
    "angle_error",
    "for_attention",
    "for_fp4_elements",
    "for_fp4_scales",
    "for_mixture",
    "for_product",
    "for_quantised_elements",
    "for_quantised_scales",
    "for_rotation",
    "for_rounding",
    "for_softmax",
    "for_sum_of_ranks",
    "slack_of",
]
