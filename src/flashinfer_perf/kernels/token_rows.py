"""Rows of tokens for an exchange between ranks: packed for their receivers, and summed when they come back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_PARTS = 4
BLOCK = 1024
WORD_BYTES = 4


@triton.jit
def _gather(
    first, second, third, fourth, tokens, packed,
    START1: tl.constexpr, START2: tl.constexpr, START3: tl.constexpr,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr, WIDTH3: tl.constexpr,
    TOTAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of columns of one packed row; a column belongs to at most one of the parts."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row)
    value = tl.load(first + token * WIDTH0 + column, mask=column < WIDTH0, other=0)
    at = column - START1
    value = tl.where(at >= 0, tl.load(second + token * WIDTH1 + at, mask=(at >= 0) & (at < WIDTH1), other=0), value)
    at = column - START2
    value = tl.where(at >= 0, tl.load(third + token * WIDTH2 + at, mask=(at >= 0) & (at < WIDTH2), other=0), value)
    at = column - START3
    value = tl.where(at >= 0, tl.load(fourth + token * WIDTH3 + at, mask=(at >= 0) & (at < WIDTH3), other=0), value)
    tl.store(packed + row * TOTAL + column, value, mask=column < TOTAL)


@triton.jit
def _sum(returned, order, out, columns, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of columns of one token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(RANKS):
        row = tl.load(order + token * RANKS + rank)
        there = tl.where(row >= 0, column < columns, False)
        total += tl.load(returned + row * columns + column, mask=there, other=0).to(tl.float32)
    tl.store(out + token * columns + column, total.to(out.dtype.element_ty), mask=column < columns)


def gather_rows(parts: list[torch.Tensor], tokens: torch.Tensor, alignment: int) -> torch.Tensor:
    """Rows ``tokens`` of all parts side by side, each part starting at a multiple of ``alignment`` bytes.

    Args:
        parts: (rows, bytes) uint8 each, contiguous; two to four of them.
        tokens: (packed rows,) int64.

    Returns:
        (packed rows, bytes) uint8; the padding is zero.
    """
    if not 2 <= len(parts) <= MOST_PARTS:
        raise ValueError(f"{len(parts)} parts: give two to {MOST_PARTS}")
    tokens = tokens.contiguous()
    widths = [part.shape[1] for part in parts]
    ends = [width + -width % alignment for width in widths]
    starts = [sum(ends[:number]) for number in range(len(parts) + 1)]
    packed = torch.empty(len(tokens), starts[-1], dtype=torch.uint8, device=tokens.device)
    word = WORD_BYTES if all(width % WORD_BYTES == 0 for width in widths) else 1
    dtype = torch.int32 if word == WORD_BYTES else torch.uint8
    lacking = MOST_PARTS - len(parts)
    sources = [part.view(dtype) for part in parts] + [parts[0].view(dtype)] * lacking
    widths, total = [width // word for width in widths] + [0] * lacking, starts[-1] // word
    starts = [start // word for start in starts[1:-1]] + [total] * lacking
    grid = (len(tokens), triton.cdiv(total, BLOCK))
    if 0 not in grid:
        _gather[grid](*sources, tokens, packed.view(dtype), *starts, *widths, total, BLOCK)
    return packed


def sum_rows(returned: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out[t] = sum over r of returned[order[t, r]], added in fp32 in the order of r.

    Args:
        returned: (rows, columns) bf16 or fp16, contiguous; out: (tokens, columns) likewise.
        order: (tokens, ranks) int64; -1 adds nothing.
    """
    order = order.contiguous()
    columns = out.shape[1]
    grid = (len(out), triton.cdiv(columns, BLOCK))
    _sum[grid](returned, order, out, columns, order.shape[1], BLOCK)
