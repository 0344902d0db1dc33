"""Softmax of rows with a temperature in Triton, for every NVIDIA GPU since Ampere.

Many rows: a program to each. It keeps the start of its row in registers and sums up the rest as it passes (Milakov,
Gimelshein: Online normalizer calculation for softmax, arXiv:1805.02867), then reads that rest a second time, last
first, since what was read last is still in the cache.

Few rows: each in parts, a program to each part, so that the whole GPU is busy. One kernel leaves the largest exponent
of each part and the sum of its exponentials; a second one combines them and reads its part again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Below every finite exponent: subtracting it from a logit of minus infinity is no NaN."""


@triton.jit
def _exponents(logits, base, column, vocabulary, scale):
    """In powers of two."""
    return tl.load(logits + base + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32) * scale


@triton.jit
def _store(probs, base, column, vocabulary, values):
    """Past the cache: it is for what is read again."""
    tl.store(probs + base + column, values, mask=column < vocabulary, cache_modifier=".cs")


@triton.jit
def _largest(x, before):
    return tl.maximum(tl.max(x, axis=0), before)


@triton.jit
def softmax_of_rows(
    logits,
    probs,
    vocabulary,
    scale,
    KEPT: tl.constexpr,
    PIECE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A row; both tensors are (rows, vocabulary), contiguous."""
    base = tl.program_id(0).to(tl.int64) * vocabulary
    start, column = tl.arange(0, KEPT), tl.arange(0, PIECE)
    kept = _exponents(logits, base, start, vocabulary, scale)  # on its way while the rest is summed up
    largest = tl.full((), LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    for first in tl.range(KEPT, vocabulary, PIECE, num_stages=STAGES):
        x = _exponents(logits, base, first + column, vocabulary, scale)
        higher = _largest(x, largest)
        total = total * tl.exp2(largest - higher) + tl.sum(tl.exp2(x - higher), axis=0)
        largest = higher
    higher = _largest(kept, largest)
    kept = tl.exp2(kept - higher)
    share = 1.0 / (total * tl.exp2(largest - higher) + tl.sum(kept, axis=0))
    _store(probs, base, start, vocabulary, kept * share)
    pieces = tl.cdiv(vocabulary - KEPT, PIECE)
    for back in tl.range(1, pieces + 1, num_stages=STAGES):
        place = KEPT + (pieces - back) * PIECE + column
        x = _exponents(logits, base, place, vocabulary, scale)
        _store(probs, base, place, vocabulary, tl.exp2(x - higher) * share)


@triton.jit
def sums_of_parts(logits, partials, vocabulary, scale, PIECE: tl.constexpr):
    """Of a part of a row: (rows, parts, 2), the largest exponent and the sum of 2^(exponent - largest)."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = _exponents(logits, row * vocabulary, part * PIECE + tl.arange(0, PIECE), vocabulary, scale)
    largest = _largest(x, LOWEST)
    place = partials + 2 * (row * tl.num_programs(1) + part)
    tl.store(place, largest)
    tl.store(place + 1, tl.sum(tl.exp2(x - largest), axis=0))


@triton.jit
def softmax_of_parts(
    logits,
    partials,
    probs,
    vocabulary,
    scale,
    PIECE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The same part with what all parts of its row have left; their number is PARTS or, rounded up, fewer."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts = tl.num_programs(1)
    column = part * PIECE + tl.arange(0, PIECE)
    x = _exponents(logits, row * vocabulary, column, vocabulary, scale)
    every = tl.arange(0, PARTS)
    place = partials + 2 * (row * parts + every)
    largest = tl.load(place, mask=every < parts, other=LOWEST)
    sums = tl.load(place + 1, mask=every < parts, other=0.0)
    highest = tl.max(largest, axis=0)
    total = tl.sum(sums * tl.exp2(largest - highest), axis=0)
    _store(probs, row * vocabulary, column, vocabulary, tl.exp2(x - highest) * (1.0 / total))


class RowTiling(NamedTuple):
    """A program to a row; powers of two."""

    kept: int
    """Logits in registers."""
    piece: int
    """Of the rest, summed up at once."""
    warps: int
    stages: int
    """Pieces on their way to shared memory at once."""


class PartTiling(NamedTuple):
    """A program to a part of a row; powers of two."""

    piece: int
    warps: int

    def parts(self, vocabulary: int) -> int:
        """Of a row."""
        return triton.cdiv(vocabulary, self.piece)


MOST_KEPT = 32768
"""Half of a multiprocessor's registers."""
SMALLEST_PIECE, LARGEST_PIECE = 1024, 8192
PROGRAMS_PER_MULTIPROCESSOR = 4
"""Wanted of programs that have a part: some load while others reduce."""


def tiling(rows: int, vocabulary: int, multiprocessors: int) -> RowTiling | PartTiling:
    """Whole rows where they occupy half of the multiprocessors, else parts that occupy all as far as there are enough.

    By what a multiprocessor holds; nothing here was tuned by measuring.
    """
    if 2 * rows >= multiprocessors:
        kept = min(triton.next_power_of_2(vocabulary), MOST_KEPT)
        return RowTiling(kept, LARGEST_PIECE, warps=min(max(kept // 1024, 4), 32), stages=3)
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, rows)
    piece = triton.next_power_of_2(triton.cdiv(vocabulary, wanted))
    piece = min(max(piece, SMALLEST_PIECE), LARGEST_PIECE)
    return PartTiling(piece, warps=piece // 256)  # eight logits to a thread: two loads of 16 bytes


def multiprocessors(device: torch.device) -> int:
    """Of the GPU; 1 where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def workspace(logits: torch.Tensor, tiles: RowTiling | PartTiling) -> torch.Tensor:
    """``partials`` of a call: (rows, parts, 2) fp32, nothing where rows are not cut."""
    parts = tiles.parts(logits.shape[1]) if isinstance(tiles, PartTiling) else 0
    return torch.empty(len(logits), parts, 2, dtype=torch.float32, device=logits.device)


def softmax(
    logits: torch.Tensor, temperature: float, partials: torch.Tensor, tiles: RowTiling | PartTiling
) -> torch.Tensor:
    """exp(logits / temperature) divided by its sum, fp32, in a new tensor.

    Args:
        logits: (rows, vocabulary) fp32, fp16 or bf16, contiguous.
        temperature: above 0.
        partials: what ``workspace`` gives; overwritten.
        tiles: how to cut the work, as ``tiling`` chooses.
    """
    if logits.dim() != 2 or not logits.is_contiguous():
        raise ValueError(f"logits are {tuple(logits.shape)}: give (rows, vocabulary), contiguous")
    scale = 1 / (temperature * math.log(2))
    probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if isinstance(tiles, RowTiling):
        _by_rows(logits, probs, scale, tiles)
    else:
        _by_parts(logits, partials, probs, scale, tiles)
    return probs


def _by_rows(logits: torch.Tensor, probs: torch.Tensor, scale: float, tiles: RowTiling) -> None:
    softmax_of_rows[(len(logits),)](
        logits,
        probs,
        logits.shape[1],
        scale,
        KEPT=tiles.kept,
        PIECE=tiles.piece,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )


def _by_parts(
    logits: torch.Tensor, partials: torch.Tensor, probs: torch.Tensor, scale: float, tiles: PartTiling
) -> None:
    rows, vocabulary = logits.shape
    grid = (rows, tiles.parts(vocabulary))
    if tuple(partials.shape) != (*grid, 2):
        raise ValueError(f"partials are {tuple(partials.shape)}: give the workspace of these tiles, {(*grid, 2)}")
    sums_of_parts[grid](logits, partials, vocabulary, scale, PIECE=tiles.piece, num_warps=tiles.warps)
    softmax_of_parts[grid](
        logits,
        partials,
        probs,
        vocabulary,
        scale,
        PIECE=tiles.piece,
        PARTS=triton.next_power_of_2(grid[1]),
        num_warps=tiles.warps,
    )
