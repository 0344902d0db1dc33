"""FP8, e4m3 and e5m2, with the conversion that kernels use: to nearest even, saturating."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch

LARGEST = {DType.FP8_E4M3: 448.0, DType.FP8_E5M2: 57344.0}


def encode(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Rounds fp32 to FP8, to nearest even. Infinities and what is too large become the largest number; NaN stays.

    torch's own cast does not: it makes infinities of large values in e5m2, and in older versions NaN in e4m3.
    """
    limit = LARGEST[dtype]
    return values.clamp(-limit, limit).to(dtype.torch)
