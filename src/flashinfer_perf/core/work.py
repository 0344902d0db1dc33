"""How much a kernel has to do, and the rates that follow from its time."""

from __future__ import annotations

import math
from dataclasses import dataclass

UNCOUNTED = math.nan
"""FLOPs of a call that moves data between ranks: by the documents, its lines say ``nan`` and its CSV rows ``N/A``."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations, or UNCOUNTED, and bytes that one call has to move at least once, over all ranks."""

    flops: float
    bytes: float

    def tflops_per_s(self, median_ms: float) -> float:
        """FLOPs / (1e9 * ms), the documented formula; NaN for a time too short for the clock."""
        return self.flops / (1e9 * median_ms) if median_ms else math.nan

    def tb_per_s(self, median_ms: float) -> float:
        """Bytes / (1e9 * ms), the documented formula; NaN for a time too short for the clock."""
        return self.bytes / (1e9 * median_ms) if median_ms else math.nan
