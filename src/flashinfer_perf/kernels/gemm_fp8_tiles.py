"""The kernel of the group-wise FP8 products; ``gemm_fp8_groupwise`` calls it."""

from __future__ import annotations

import triton
import triton.language as tl

K_BLOCK = tl.constexpr(128)
"""Elements of k, and rows of b, that share a scale."""


@triton.jit
def _tiles_of(row_offsets, group, tiles_across, ROWS: tl.constexpr):
    """Number of tiles of a group."""
    return tl.cdiv(tl.load(row_offsets + group + 1) - tl.load(row_offsets + group), ROWS) * tiles_across


@triton.jit
def _group_of(tile, row_offsets, groups, tiles_across, ROWS: tl.constexpr):
    """The group that a tile is of, the number of its tile, and the number of all tiles."""
    group, first, seen = 0, 0, 0
    for candidate in range(groups):
        tiles = _tiles_of(row_offsets, candidate, tiles_across, ROWS)
        hit = (tile >= seen) & (tile < seen + tiles)
        group, first = tl.where(hit, candidate, group), tl.where(hit, seen, first)
        seen += tiles
    return group, tile - first, seen


@triton.jit
def _place(tile, tiles_down, tiles_across, NEIGHBOURS: tl.constexpr):
    """Row and column of a tile: bands of NEIGHBOURS rows of tiles, column by column."""
    band = tile // (NEIGHBOURS * tiles_across)
    height = tl.minimum(tiles_down - band * NEIGHBOURS, NEIGHBOURS)
    within = tile % (NEIGHBOURS * tiles_across)
    return band * NEIGHBOURS + within % height, within // height


@triton.jit
def _operand(source, row, rows, block, blocks, ROWS: tl.constexpr, TMA: tl.constexpr):
    """(ROWS, 128) of a matrix, by the copy engine or by loads; what lies behind the last row is zero."""
    if TMA:
        return source.load([row, block * K_BLOCK])
    else:  # noqa: RET505 - what follows a return is compiled, too
        index = row + tl.arange(0, ROWS)
        columns = block * K_BLOCK + tl.arange(0, K_BLOCK)
        pointers = source + index[:, None].to(tl.int64) * (blocks * K_BLOCK) + columns[None, :]
        return tl.load(pointers, (index < rows)[:, None], 0.0)


@triton.jit
def _product(x, y, UPCAST: tl.constexpr):
    if UPCAST:
        return tl.dot(x.to(tl.float32), y.to(tl.float32).T, input_precision="ieee")
    return tl.dot(x, y.T)


@triton.jit
def _store(out, value, row, end, column, n):
    rows, columns = row + tl.arange(0, value.shape[0]), column + tl.arange(0, value.shape[1])
    pointers = out + rows[:, None].to(tl.int64) * n + columns[None, :]
    tl.store(pointers, value.to(out.dtype.element_ty), (rows < end)[:, None] & (columns < n)[None, :])


@triton.jit
def gemm_tiles(
    a,
    b,
    a_scale,
    b_scale,
    out,
    row_offsets,
    groups,
    rows,
    n,
    blocks,
    a_row_stride,
    a_block_stride,
    b_group_stride,
    b_row_stride,
    b_block_stride,
    GROUPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPECIALIZE: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Tiles of ROWS x COLUMNS, one after the other.

    ``blocks`` counts the blocks of k; b has the groups' rows one behind the other; strides are those of scales. Every
    block's product is complete before it is scaled and added in fp32. With OVERLAP a tile has two halves, and one's
    products are added while the other's are computed; with SPECIALIZE warps that load work for warps that multiply.
    """
    HALF: tl.constexpr = COLUMNS // 2 if OVERLAP else COLUMNS
    tiles_across = tl.cdiv(n, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * tiles_across
    if GROUPED:
        _, _, tiles = _group_of(0, row_offsets, groups, tiles_across, ROWS)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        group, tile, start, end = 0, number, 0, rows
        if GROUPED:
            group, tile, _ = _group_of(number, row_offsets, groups, tiles_across, ROWS)
            start, end = tl.load(row_offsets + group), tl.load(row_offsets + group + 1)
        down, across = _place(tile, tl.cdiv(end - start, ROWS), tiles_across, NEIGHBOURS)
        row, column = start + down * ROWS, across * COLUMNS
        b_row, b_rows = group * n + column, groups * n
        index = row + tl.arange(0, ROWS)
        present = index < end
        a_scales = a_scale + index * a_row_stride
        b_scales = b_scale + (group * b_group_stride + column // K_BLOCK * b_row_stride)

        total = tl.zeros((ROWS, HALF), tl.float32)
        if OVERLAP:
            b_second = b_scale + (group * b_group_stride + (column + HALF) // K_BLOCK * b_row_stride)
            second = column + HALF < n
            other = tl.zeros((ROWS, HALF), tl.float32)
            late = tl.zeros((ROWS, HALF), tl.float32)
            late_scale = tl.zeros((ROWS,), tl.float32)
            for block in range(blocks):
                x = _operand(a, row, rows, block, blocks, ROWS, TMA)
                y = _operand(b, b_row, b_rows, block, blocks, HALF, TMA)
                z = _operand(b, b_row + HALF, b_rows, block, blocks, HALF, TMA)
                scale = tl.load(a_scales + block * a_block_stride, present, 0.0)
                next_scale = scale * tl.load(b_second + block * b_block_stride, second, 0.0)
                scale *= tl.load(b_scales + block * b_block_stride)
                partial = _product(x, y, UPCAST)
                next_late = _product(x, z, UPCAST)
                other += late * late_scale[:, None]
                total += partial * scale[:, None]
                late, late_scale = next_late, next_scale
            other += late * late_scale[:, None]
            _store(out, other, row, end, column + HALF, n)
        else:
            for block in tl.range(0, blocks, warp_specialize=SPECIALIZE):
                x = _operand(a, row, rows, block, blocks, ROWS, TMA)
                y = _operand(b, b_row, b_rows, block, blocks, HALF, TMA)
                scale = tl.load(a_scales + block * a_block_stride, present, 0.0)
                scale *= tl.load(b_scales + block * b_block_stride)
                total += _product(x, y, UPCAST) * scale[:, None]
        _store(out, total, row, end, column, n)
