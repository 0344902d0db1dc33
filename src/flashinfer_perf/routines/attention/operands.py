"""What FP8 elements stand for, and the softmax scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.attention.flags import AttentionFlags

E4M3_MAX = 448.0
LARGEST = {"q": 12.0, "k": 8.0, "v": 18.0}
"""What 448, the largest E4M3 number, stands for, as if calibrated: beyond all standard normal numbers, and
different for each operand, so that a scale that is forgotten or taken from another one shows.
"""


@dataclass(frozen=True)
class Scales:
    """An element of the operand stands for its value times this; 1 for formats of 16 bits."""

    q: float
    k: float
    v: float


def scales_of(case: AttentionFlags) -> Scales:
    """Those of the case's formats."""
    return Scales(
        _scale("q", case.q_dtype),
        _scale("k", case.kv_dtype),
        _scale("v", case.kv_dtype),
    )


def _scale(operand: str, dtype: DType) -> float:
    return LARGEST[operand] / E4M3_MAX if dtype.bytes == 1 else 1.0


def softmax_scale(case: AttentionFlags) -> float:
    """1 / sqrt(head_dim_qk)."""
    assert case.head_dim_qk is not None, "the routine demands it"
    return 1 / math.sqrt(case.head_dim_qk)
