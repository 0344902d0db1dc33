"""The kernels of the block quantisers; ``quantize`` calls them."""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels import block_tiles, e2m1, e4m3, e8m0

WORD = tl.constexpr(tl.pointer_type(tl.uint32))
SIXTH = tl.constexpr(0.16666667163372040)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def _floats(words, HALF: tl.constexpr):
    """Eight tensors of a piece's elements in order, and the largest magnitude of each block; zero if all are NaN."""
    w0, w1, w2, w3 = block_tiles.split_four(words)
    v0, v1 = block_tiles.two_floats(w0, HALF)
    v2, v3 = block_tiles.two_floats(w1, HALF)
    v4, v5 = block_tiles.two_floats(w2, HALF)
    v6, v7 = block_tiles.two_floats(w3, HALF)
    left = block_tiles.larger(block_tiles.larger(v0, v1), block_tiles.larger(v2, v3))
    right = block_tiles.larger(block_tiles.larger(v4, v5), block_tiles.larger(v6, v7))
    largest = tl.maximum(tl.max(tl.maximum(left, right), axis=1), 0.0)
    return v0, v1, v2, v3, v4, v5, v6, v7, largest


@triton.jit
def _scale(largest, of_all, inverse, FORMAT: tl.constexpr):
    """Scale bytes of blocks, and the factors that elements are multiplied by."""
    if FORMAT == "mxfp8":  # every branch needs its else: the compiler goes on behind a return
        byte, factor = e8m0.scale_up(largest, 8, 0x600000)
    elif FORMAT == "mxfp4":
        byte, factor = e8m0.scale_up(largest, 2, 0x400000)
    else:
        byte, factor = _nvfp4_scale(largest, of_all, inverse)
    return byte, factor


@triton.jit
def _nvfp4_scale(largest, of_all, inverse):
    """As ``formats.nvfp4``, operation by operation: another order gives other codes at ties."""
    code, scale = e4m3.round_scale(_flushed(of_all * _flushed(largest * SIXTH)))
    factor = tl.div_rn(1.0, scale * inverse)
    return code, tl.where(largest == 0.0, 0.0, factor)


@triton.jit
def _flushed(value):
    return tl.where(value < SMALLEST_NORMAL, 0.0, value)


@triton.jit
def _encoded(
    words, of_all, inverse, FORMAT: tl.constexpr, HALF: tl.constexpr, HARDWARE: tl.constexpr, OUT_WORDS: tl.constexpr
):  # fmt: skip
    """Of blocks, a row each: their packed elements, (blocks, OUT_WORDS), and their scales' bytes."""
    v0, v1, v2, v3, v4, v5, v6, v7, largest = _floats(words, HALF)
    byte, factor = _scale(largest, of_all, inverse, FORMAT)
    f = factor[:, None]
    if FORMAT == "mxfp8":
        low = e4m3.pack_four(v0 * f, v1 * f, v2 * f, v3 * f, HARDWARE)
        high = e4m3.pack_four(v4 * f, v5 * f, v6 * f, v7 * f, HARDWARE)
        packed = tl.join(low, high).reshape(words.shape[0], OUT_WORDS)
    else:
        packed = e2m1.pack_eight(v0, v1, v2, v3, v4, v5, v6, v7, f)
    return packed, byte


@triton.jit
def _of_all(global_scale, FORMAT: tl.constexpr):
    """NVFP4's global scale and its reciprocal; ones for the others."""
    of_all, inverse = 1.0, 1.0
    if FORMAT == "nvfp4":
        of_all = tl.load(global_scale)
        inverse = _flushed(tl.div_rn(1.0, of_all))
    return of_all, inverse


@triton.jit
def quantize_blocks(
    x,
    values,
    scales,
    global_scale,
    rows,
    padded_rows,
    blocks,
    out_blocks,
    parts,
    FORMAT: tl.constexpr,
    HALF: tl.constexpr,
    LAYOUT: tl.constexpr,
    SHUFFLED: tl.constexpr,
    HARDWARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Tiles of ROWS slots and BLOCKS blocks, ``parts`` of them, one after the other along the rows.

    A loop, because code is read, too: after whatever ran before, from memory. The next tile is loaded while one is
    computed. Rows are those of a batch entry. ``out_blocks`` counts the blocks of zeros, too, that fill a row up to its
    alignment; ``padded_rows`` the rows of a layout's last tile.
    """
    WORDS: tl.constexpr = 8 if FORMAT == "nvfp4" else 16
    OUT_WORDS: tl.constexpr = WORDS // 2 if FORMAT == "mxfp8" else WORDS // 4
    first = tl.program_id(1) * ROWS
    batch = tl.program_id(2).to(tl.int64)
    span = (first // block_tiles.SPAN).to(tl.int64)
    index = tl.arange(0, ROWS * BLOCKS)
    slot = first % block_tiles.SPAN + index // BLOCKS
    row = block_tiles.row_of_slot(slot, LAYOUT)
    origin = batch * rows + span * block_tiles.SPAN
    present = row < rows - span * block_tiles.SPAN
    row_words = (
        x.to(WORD, bitcast=True) + origin * blocks * WORDS + block_tiles.source_row(row, SHUFFLED) * (blocks * WORDS)
    )
    out_words = values.to(WORD, bitcast=True) + origin * out_blocks * OUT_WORDS + row * (out_blocks * OUT_WORDS)
    padded_blocks = out_blocks if LAYOUT == "linear" else tl.cdiv(out_blocks, 4) * 4
    out_scales = scales + batch * padded_rows * padded_blocks
    padding = slot < padded_rows - span * block_tiles.SPAN
    of_all, inverse = _of_all(global_scale, FORMAT)
    block = tl.program_id(0) * parts * BLOCKS + index % BLOCKS
    next_words = block_tiles.load_words(row_words + block * WORDS, present & (block < blocks), WORDS, WHOLE)
    for part in range(parts):
        words = next_words
        ahead = block + BLOCKS
        wanted = tl.where(part + 1 < parts, present & (ahead < blocks), False)
        next_words = block_tiles.load_words(row_words + ahead * WORDS, wanted, WORDS, WHOLE)

        packed, byte = _encoded(words, of_all, inverse, FORMAT, HALF, HARDWARE, OUT_WORDS)
        out = (out_words + block * OUT_WORDS)[:, None] + tl.arange(0, OUT_WORDS)[None, :]
        tl.store(out, packed, (present & (block < out_blocks))[:, None])
        place = block_tiles.scale_offset(span, slot, block, out_blocks, LAYOUT)
        tl.store(out_scales + place, byte.to(tl.uint8), padding & (block < padded_blocks))
        block = ahead
