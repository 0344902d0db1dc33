"""Inputs of the sampling family, and the lines that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.sampling.flags import SamplingFlags, rows
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Shown

PEAK = 6.0
"""Standard deviation of peaked logits. Above sqrt(2 ln vocab_size), 4.9 for 128256 tokens, a handful of tokens hold
most of the probability, as they do in a trained model (it is the freezing point of the random energy model).
"""
STEP = 0.25
"""Logits with ties are multiples of it: 30 values for all tokens, exact in every format."""
LEVELS = 16
"""Different values among probabilities with ties."""


def logits(
    make: TensorFactory, name: str, shape: Sequence[int], dtype: DType, distribution: str = "normal"
) -> torch.Tensor:
    """Standard normal numbers; or six times that, or uniform on [0, 1), or multiples of a quarter."""
    if distribution == "uniform":
        return make.uniform(name, shape, dtype)
    drawn = make.normal(name, shape, dtype, scale=1 / PEAK if distribution == "peaked" else 1.0)
    return drawn.div_(STEP).round_().mul_(STEP) if distribution == "ties" else drawn


def probabilities(
    make: TensorFactory,
    shape: Sequence[int],
    distribution: str = "normal",
    name: str = "probs",
    dtype: DType = DType.FLOAT32,
) -> torch.Tensor:
    """Rows along the last dimension that sum to 1.

    ``normal`` is what upstream has: uniform random numbers divided by their sum. ``peaked`` and ``uniform`` are the
    softmax of such logits, ``ties`` has 16 different values.
    """
    if distribution in ("peaked", "uniform"):
        return logits(make, name, shape, DType.FLOAT32, distribution).softmax(dim=-1).to(dtype.torch)
    weights = make.uniform(name, shape, DType.FLOAT32)
    if distribution == "ties":
        weights = weights.mul_(LEVELS).floor_().add_(1)
    return weights.div_(weights.sum(dim=-1, keepdim=True)).to(dtype.torch)


def replicated(row: torch.Tensor, batch_size: int) -> torch.Tensor:
    """A batch of one row (1, …), so that a call draws from one distribution as often as it has rows."""
    return row.expand(batch_size, *row.shape[1:]).contiguous()


def shown(name: str, tensor: torch.Tensor, **more: Any) -> tuple[Shown, ...]:
    """Shape and format of the input, then other values by their labels."""
    lines = {f"{name}.shape": tensor.shape, f"{name}.dtype": tensor.dtype, **more}
    return tuple(Shown(label, value) for label, value in lines.items())


def page_table(make: TensorFactory, batch_size: int, width: int) -> torch.Tensor:
    """(batch, width) int32: the numbers from 0, each once, in random order, so that no wrong entry looks right."""
    make.reserve("src_page_table", (batch_size, width), DType.FLOAT32)  # four bytes each, too
    require_int32("page table entries", "batch_size", batch_size, width)
    order = torch.randperm(batch_size * width, generator=make.generator("src_page_table"), dtype=torch.int32)
    return order.reshape(batch_size, width).to(make.device)


def offsets(make: TensorFactory, count: int, width: int) -> torch.Tensor:
    """(rows,) int32: where rows begin that lie one after the other."""
    require_int32("offsets", "num_rows", count, width)
    return torch.arange(0, count * width, width, dtype=torch.int32, device=make.device)


def require_int32(what: str, flag: str, count: int, width: int) -> None:
    """Raises InvalidInput when positions in so many rows do not fit the 32 bits that the kernels read."""
    if count * width >= 1 << 31:
        raise InvalidInput(f"{what} are 32-bit integers: {flag} ({count}) times max_len ({width}) must be below 2^31")


def scores(case: SamplingFlags, make: TensorFactory, output: str) -> dict[str, torch.Tensor]:
    """Of the top-k transforms: input (rows, max_len), and lengths (rows,) int32, all max_len as upstream's.

    The output is accounted for, too: with a large top_k it is more than the scores.
    """
    shape = (rows(case), case.max_len)
    make.reserve(output, (rows(case), case.top_k), DType.FLOAT32)
    return {
        "input": logits(make, "input", shape, case.input_dtype, case.input_distribution),
        "lengths": torch.full((rows(case),), case.max_len, dtype=torch.int32, device=make.device),
    }
