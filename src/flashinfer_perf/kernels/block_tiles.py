"""Tiles of a matrix whose rows are cut into blocks with a scale each: which rows and blocks a program has, where their
scales go, and how a block's elements come into registers.

A program has ``ROWS`` slots of ``BLOCKS`` blocks, all in one axis, so that neighbouring threads have neighbouring
blocks. Slots are counted in the order in which scales lie in memory, so that a tile of 128x4 is written as 512 bytes in
a row, whatever rows they belong to.
"""

from __future__ import annotations

import triton
import triton.language as tl

SPAN = tl.constexpr(128)
"""Rows within which layouts and shuffles stay; a program's slots lie in one such span."""


@triton.jit
def row_of_slot(slot, LAYOUT: tl.constexpr):
    """The output's row, within a span, whose scales lie at a slot."""
    if LAYOUT == "128x4":
        return slot % 4 * 32 + slot // 4
    return slot


@triton.jit
def source_row(row, SHUFFLED: tl.constexpr):
    """The input's row, within a span, that an output's row is made of (``formats.shuffle``)."""
    if SHUFFLED:
        return row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    return row


@triton.jit
def scale_offset(span, slot, block, blocks, LAYOUT: tl.constexpr):
    """Byte of a scale within its batch entry.

    Args:
        span: number of the span, int64.
        slot: within the span.
        block: column of the scale.
        blocks: in a row of the output, padding not counted.
    """
    across = tl.cdiv(blocks, 4)
    if LAYOUT == "128x4":
        return span * across * 512 + (block // 4 * 512 + slot * 4 + block % 4)
    if LAYOUT == "8x4":
        return span * across * 512 + (slot // 8 * across * 32 + block // 4 * 32 + slot % 8 * 4 + block % 4)
    return span * SPAN * blocks + (slot * blocks + block)


@triton.jit
def load_words(block_words, inside, WORDS: tl.constexpr, WHOLE: tl.constexpr):
    """Elements of blocks, two to a 32-bit word: uint32 (blocks, pieces, 4), zeros where not inside.

    Args:
        block_words: (blocks,) pointers to a block's first word.
        WHOLE: a thread reads whole blocks, piece by piece of 16 bytes, so that it finds a block's maximum alone;
            otherwise neighbouring threads read a block's pieces, so that a warp reads consecutive memory.
    """
    COUNT: tl.constexpr = block_words.shape[0]
    if WHOLE:
        pointers = block_words[:, None] + tl.arange(0, 4)[None, :]
        mask = inside[:, None]
        if WORDS == 8:
            words = tl.join(tl.load(pointers, mask, 0), tl.load(pointers + 4, mask, 0))
        else:
            evens = tl.join(tl.load(pointers, mask, 0), tl.load(pointers + 8, mask, 0))
            odds = tl.join(tl.load(pointers + 4, mask, 0), tl.load(pointers + 12, mask, 0))
            words = tl.join(evens, odds).reshape(COUNT, 4, 4)
        return words.permute(0, 2, 1)
    words = tl.load(block_words[:, None] + tl.arange(0, WORDS)[None, :], inside[:, None], 0)
    return words.reshape(COUNT, WORDS // 4, 4)


@triton.jit
def split_four(words):
    """(blocks, pieces, 4) as four tensors."""
    evens, odds = tl.split(words.reshape(words.shape[0], words.shape[1], 2, 2))
    first, third = tl.split(evens)
    second, fourth = tl.split(odds)
    return first, second, third, fourth


@triton.jit
def two_floats(words, HALF: tl.constexpr):
    """A word's two elements in fp32, the one in the low half first; fp16 when ``HALF``, otherwise bf16."""
    if HALF:
        low = (words & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (words >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        return low, high
    return (words << 16).to(tl.float32, bitcast=True), (words & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def larger(a, b):
    """Larger magnitude of two tensors; NaN is not seen."""
    return tl.maximum(tl.abs(a), tl.abs(b))
