"""Inputs of the sampling family."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.factory import TensorFactory


def probabilities(make: TensorFactory, batch_size: int, vocab_size: int) -> torch.Tensor:
    """(batch, vocab) fp32 rows that sum to 1: uniform numbers divided by their sum."""
    weights = make.uniform("probs", (batch_size, vocab_size), DType.FLOAT32)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def replicated(row: torch.Tensor, batch_size: int) -> torch.Tensor:
    """A batch of one row, so that a call draws from one distribution as often as it has rows."""
    return row.expand(batch_size, -1).contiguous()
