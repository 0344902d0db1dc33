"""What the tests of tolerances share."""

from __future__ import annotations

import torch

from flashinfer_perf.core.dtypes import DType

SIXTEEN_BITS = [DType.FLOAT16, DType.BFLOAT16]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape or (64, 96), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def passes(check, actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return check.judge("out", {"out": actual}, {"out": expected}).passed
