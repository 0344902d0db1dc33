"""Sorts the pairs of a token and one of its experts by expert, on the GPU, by one program.

An expert's rows lie between two offsets, and a table says of each block of rows which expert's it is. Nothing is
padded, unless experts' first rows are to be aligned. How many blocks there are is known to the GPU only; the products'
grids are an upper bound.
"""

from __future__ import annotations

import triton
import triton.language as tl

FEWEST_AT_ONCE, MOST_AT_ONCE = 128, 2048
"""Pairs that the program takes."""


def chunk_of(pairs: int) -> int:
    """Pairs at once, a power of two."""
    return min(max(triton.next_power_of_2(pairs), FEWEST_AT_ONCE), MOST_AT_ONCE)


def most_blocks(pairs: int, experts: int, rows: int) -> int:
    """Blocks of so many rows, at most: each expert may have one that it does not fill."""
    return min(pairs, pairs // rows + experts)


@triton.jit
def _local_experts(topk_ids, index, pairs, first_expert, experts):
    """Numbers among the experts that are here, and whether they are."""
    inside = index < pairs
    expert = tl.load(topk_ids + index, inside, 0) - first_expert
    local = inside & (expert >= 0) & (expert < experts)
    return tl.where(local, expert, 0), local


@triton.jit
def _write_blocks(blocks, expert, start, end, experts, stride, ROWS: tl.constexpr):
    """Of every block its expert, its first row and the end of the expert's rows; before them the number of blocks."""
    count = tl.where(expert < experts, tl.cdiv(end - start, ROWS), 0)
    first = tl.cumsum(count) - count
    tl.store(blocks, tl.sum(count))
    for block in range(tl.max(count)):
        entry = blocks + 1 + first + block
        present = block < count
        tl.store(entry, expert, present)
        tl.store(entry + stride, start + block * ROWS, present)
        tl.store(entry + 2 * stride, end, present)


@triton.jit
def sort_pairs(
    topk_ids, order, offsets, cursors, blocks, pairs, first_expert, experts, stride,
    ROWS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, ALIGNED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Pairs of one expert come in any order, which changes no result: each is a row of its own.

    Args:
        topk_ids: (pairs,) int32, a token's next to each other.
        order: (pairs,) int32 out: which pair a row is; if INVERSE, which row a pair is, -1 for experts elsewhere.
        offsets: (BINS + 1,) int32 out: where each expert's rows begin; the last is the number of rows.
        cursors: (BINS,) int32, scratch.
        blocks: (1 + 3 stride,) int32 out; see ``_write_blocks``.
        BINS: power of two, not less than ``experts``.
        ALIGNED: an expert's first row is a multiple of it, so that rows between experts are nobody's.
    """
    expert = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, pairs, CHUNK):
        which, local = _local_experts(topk_ids, start + tl.arange(0, CHUNK), pairs, first_expert, experts)
        counts += tl.histogram(which, BINS, mask=local)
    taken = tl.cdiv(counts, ALIGNED) * ALIGNED
    starts = tl.cumsum(taken) - taken
    tl.store(offsets + expert, starts)
    tl.store(offsets + BINS, tl.sum(counts))
    tl.store(cursors + expert, starts)
    _write_blocks(blocks, expert, starts, starts + counts, experts, stride, ROWS)
    tl.debug_barrier()  # every thread adds to cursors that others have written
    for start in range(0, pairs, CHUNK):
        index = start + tl.arange(0, CHUNK)
        which, local = _local_experts(topk_ids, index, pairs, first_expert, experts)
        row = tl.atomic_add(cursors + which, 1, mask=local, sem="relaxed")
        if INVERSE:
            tl.store(order + index, tl.where(local, row, -1), index < pairs)
        else:
            tl.store(order + row, index, local)
