"""The kernel of the group-wise FP8 products for any GPU that multiplies FP8; ``gemm_fp8_groupwise`` calls it."""

from __future__ import annotations

import triton
import triton.language as tl

K_BLOCK = tl.constexpr(128)
"""Elements of k, and rows of b, that share a scale."""
NEIGHBOURS = tl.constexpr(8)
"""Rows of tiles that are walked down before the next column, so that both operands stay in L2."""


@triton.jit
def _group_of(tile, m_indptr, groups, across, ROWS: tl.constexpr):
    """The group that a tile is of, the number of its tile, and the number of all tiles."""
    group, first, seen = 0, 0, 0
    for candidate in range(groups):
        rows = tl.load(m_indptr + candidate + 1) - tl.load(m_indptr + candidate)
        tiles = tl.cdiv(rows, ROWS) * across
        hit = (tile >= seen) & (tile < seen + tiles)
        group, first = tl.where(hit, candidate, group), tl.where(hit, seen, first)
        seen += tiles
    return group, tile - first, seen


@triton.jit
def _place(tile, down, across):
    """Row and column of a tile: bands of NEIGHBOURS rows of tiles, column by column."""
    band = tile // (NEIGHBOURS * across)
    height = tl.minimum(down - band * NEIGHBOURS, NEIGHBOURS)
    within = tile % (NEIGHBOURS * across)
    return band * NEIGHBOURS + within % height, within // height


@triton.jit
def _product(x, y, UPCAST: tl.constexpr):
    if UPCAST:
        result = tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision="ieee")
    else:
        result = tl.dot(x, y)
    return result


@triton.jit
def gemm_tiles(
    a,
    b,
    a_scale,
    b_scale,
    out,
    m_indptr,
    groups,
    n,
    blocks,
    a_row_stride,
    a_block_stride,
    b_group_stride,
    b_row_stride,
    b_block_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A tile of ROWS x COLUMNS; there may be more programs than tiles.

    ``blocks`` counts the blocks of k; b has the groups' rows one behind the other; strides are those of scales. Every
    block's product is complete before it is scaled and added in fp32.
    """
    across = n // COLUMNS
    group, tile, tiles = _group_of(tl.program_id(0), m_indptr, groups, across, ROWS)
    if tl.program_id(0) < tiles:
        start, end = tl.load(m_indptr + group), tl.load(m_indptr + group + 1)
        down, right = _place(tile, tl.cdiv(end - start, ROWS), across)
        row = start + down * ROWS + tl.arange(0, ROWS)
        column = right * COLUMNS
        columns = column + tl.arange(0, COLUMNS)
        present = row < end
        depth = tl.arange(0, K_BLOCK)
        length = blocks * K_BLOCK
        left = a + row[:, None].to(tl.int64) * length + depth[None, :]
        right = b + (group * n + columns)[None, :].to(tl.int64) * length + depth[:, None]
        a_scales = a_scale + row * a_row_stride
        b_scales = b_scale + (group * b_group_stride + column // K_BLOCK * b_row_stride)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(blocks):
            x = tl.load(left + block * K_BLOCK, present[:, None], 0.0)
            y = tl.load(right + block * K_BLOCK)
            scale = tl.load(a_scales + block * a_block_stride, present, 0.0)
            scale *= tl.load(b_scales + block * b_block_stride)
            total += _product(x, y, UPCAST) * scale[:, None]
        pointers = out + row[:, None].to(tl.int64) * n + columns[None, :]
        tl.store(pointers, total.to(out.dtype.element_ty), present[:, None])
