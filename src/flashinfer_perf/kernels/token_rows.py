"""Rows of tokens for an exchange between ranks: counted and packed for their receivers, and summed when they come back.

Nothing here waits for the device, so that packing goes on while ranks tell each other how many rows come.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_PARTS = 4
BLOCK = 1024
PLAN_ELEMENTS = 8192
"""Choices of experts at once, when rows are counted."""
WORD_BYTES = 4


@triton.jit
def _wants(owner, rank):
    """Which tokens have an expert on a rank, 1 or 0, from the ranks that own their experts, (tokens, top_k)."""
    return tl.max((owner == rank).to(tl.int32), axis=1)


@triton.jit
def _owners(experts, start, tokens, per_rank, TOP_K: tl.constexpr, CHOICES: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK, CHOICES) ranks; -1 where there is no token or no choice."""
    token, choice = start + tl.arange(0, BLOCK), tl.arange(0, CHOICES)
    there = tl.where((token < tokens)[:, None], (choice < TOP_K)[None, :], False)
    expert = tl.load(experts + token[:, None] * TOP_K + choice[None, :], there, 0)
    return tl.where(there, expert // per_rank, -1)


@triton.jit
def _plan(
    experts, order, counts, tokens, per_rank,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One rank's rows, which follow those of all ranks before it."""
    rank, ranks = tl.program_id(0), tl.num_programs(0)
    earlier = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tokens, BLOCK):
        owner = _owners(experts, start, tokens, per_rank, TOP_K, CHOICES, BLOCK)
        for other in range(rank):
            earlier += _wants(owner, other)
    first = tl.sum(earlier)
    following = first
    for start in range(0, tokens, BLOCK):
        wanted = _wants(_owners(experts, start, tokens, per_rank, TOP_K, CHOICES, BLOCK), rank)
        token = start + tl.arange(0, BLOCK)
        row = tl.where(wanted > 0, following + tl.cumsum(wanted, 0) - 1, -1)
        tl.store(order + token * ranks + rank, row, token < tokens)
        following += tl.sum(wanted)
    tl.store(counts + rank, following - first)


@triton.jit
def _pack(
    first, second, third, fourth, order, packed,
    START1: tl.constexpr, START2: tl.constexpr, START3: tl.constexpr,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr, WIDTH3: tl.constexpr,
    TOTAL: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of columns of one token, to all of its rows; a column belongs to at most one of the parts."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(first + token * WIDTH0 + column, mask=column < WIDTH0, other=0)
    at = column - START1
    value = tl.where(at >= 0, tl.load(second + token * WIDTH1 + at, mask=(at >= 0) & (at < WIDTH1), other=0), value)
    at = column - START2
    value = tl.where(at >= 0, tl.load(third + token * WIDTH2 + at, mask=(at >= 0) & (at < WIDTH2), other=0), value)
    at = column - START3
    value = tl.where(at >= 0, tl.load(fourth + token * WIDTH3 + at, mask=(at >= 0) & (at < WIDTH3), other=0), value)
    for rank in tl.static_range(RANKS):
        row = tl.load(order + token * RANKS + rank).to(tl.int64)
        tl.store(packed + row * TOTAL + column, value, mask=tl.where(row >= 0, column < TOTAL, False))


@triton.jit
def _sum(returned, order, out, columns, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of columns of one token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(RANKS):
        row = tl.load(order + token * RANKS + rank).to(tl.int64)
        there = tl.where(row >= 0, column < columns, False)
        total += tl.load(returned + row * columns + column, mask=there, other=0).to(tl.float32)
    tl.store(out + token * columns + column, total.to(out.dtype.element_ty), mask=column < columns)


def plan_rows(experts: torch.Tensor, per_rank: int, order: torch.Tensor, counts: torch.Tensor) -> None:
    """Which rows tokens get, if those for rank 0 come first, then those for rank 1, and so on.

    Args:
        experts: (tokens, top_k) int32, contiguous; rank r owns r * per_rank and the following ones.
        order: (tokens, ranks) int32: filled with a token's row for each rank, -1 where that owns none of its experts.
        counts: (ranks,) int64: filled with the number of rows for each.
    """
    tokens, top_k = experts.shape
    choices = triton.next_power_of_2(top_k)
    _plan[(len(counts),)](experts, order, counts, tokens, per_rank, top_k, choices, PLAN_ELEMENTS // choices)


def pack_rows(parts: list[torch.Tensor], order: torch.Tensor, packed: torch.Tensor, starts: list[int]) -> None:
    """Every token's parts side by side, in all rows that ``order`` gives it.

    Args:
        parts: (tokens, bytes) uint8 each, contiguous; two to four of them.
        order: (tokens, ranks) int32; -1 is no row.
        packed: (rows, bytes) uint8; rows that no token has are left as they are, padding between parts becomes zero.
        starts: byte of a packed row where each part begins, the first at 0.
    """
    if not 2 <= len(parts) <= MOST_PARTS:
        raise ValueError(f"{len(parts)} parts: give two to {MOST_PARTS}")
    widths, total = [part.shape[1] for part in parts], packed.shape[1]
    word = WORD_BYTES if all(number % WORD_BYTES == 0 for number in (*widths, *starts, total)) else 1
    dtype = torch.int32 if word == WORD_BYTES else torch.uint8
    lacking = MOST_PARTS - len(parts)
    sources = [part.view(dtype) for part in parts] + [parts[0].view(dtype)] * lacking
    widths, total = [width // word for width in widths] + [0] * lacking, total // word
    starts = [start // word for start in starts[1:]] + [total] * lacking
    grid = (len(order), triton.cdiv(total, BLOCK))
    if 0 not in grid:
        _pack[grid](*sources, order, packed.view(dtype), *starts, *widths, total, order.shape[1], BLOCK)


def sum_rows(returned: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out[t] = sum over r of returned[order[t, r]], added in fp32 in the order of r.

    Args:
        returned: (rows, columns) bf16 or fp16, contiguous; out: (tokens, columns) likewise.
        order: (tokens, ranks) int32; -1 adds nothing.
    """
    columns = out.shape[1]
    grid = (len(out), triton.cdiv(columns, BLOCK))
    _sum[grid](returned, order, out, columns, order.shape[1], BLOCK)
