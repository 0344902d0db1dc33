"""The state in which references are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flashinfer_perf.lazy import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, and fp32 products in fp32: TF32 would give them ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
