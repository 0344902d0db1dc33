"""The kernel of the group-wise FP8 products for Hopper, in Gluon; ``gemm_fp8_groupwise`` calls it.

A program takes tile after tile. One warp has the copy engine bring blocks of k into a ring of buffers. Three groups of
four warps multiply 64 rows each: while one scales a block's product and adds it in fp32, the tensor cores have those of
the others to do. Two groups would leave them idle whenever both add.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

BLOCK = gl.constexpr(128)
"""Elements of k, and rows of b, that share a scale; and columns of a tile."""
PART = gl.constexpr(64)
"""Rows of a tile that four warps have: those of a warpgroup's product."""
PARTS = gl.constexpr(3)
STAGES = gl.constexpr(4)
"""Blocks of k in the ring: 160 KiB, beside 48 KiB of output."""
# Of one signature: Triton 3.9 has the first names only, 3.6 the second.
copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
_view = gl.shared_memory_descriptor
reinterpret = _view.reinterpret if hasattr(_view, "reinterpret") else _view._reinterpret
NEIGHBOURS = gl.constexpr(8)
"""Rows of tiles that are walked down before the next column, so that both operands stay in L2."""
TILE_ROWS = PART.value * PARTS.value
REGISTERS_TO_MULTIPLY, REGISTERS_TO_LOAD = gl.constexpr(160), gl.constexpr(24)
"""Of a thread. 128 hold a part's sum and the product of one block."""


@gluon.jit
def _tiles_down(m_indptr, group):
    return gl.cdiv(gl.load(m_indptr + group + 1) - gl.load(m_indptr + group), PART * PARTS)


@gluon.jit
def _place(tile, m_indptr, groups, across):
    """Of a tile: its group, first row, the end of the group's rows, and its first column."""
    group, first, found = 0, 0, 0
    for candidate in range(groups):
        count = _tiles_down(m_indptr, candidate) * across
        hit = (tile >= first) & (tile < first + count)
        group = gl.where(hit, candidate, group)
        found = gl.where(hit, first, found)
        first += count
    within = tile - found
    band = within // (NEIGHBOURS * across)
    height = gl.minimum(_tiles_down(m_indptr, group) - band * NEIGHBOURS, NEIGHBOURS)
    inside = within % (NEIGHBOURS * across)
    row = gl.load(m_indptr + group) + (band * NEIGHBOURS + inside % height) * (PART * PARTS)
    return group, row, gl.load(m_indptr + group + 1), inside // height * BLOCK


@gluon.jit
def _count(m_indptr, groups, across):
    tiles = 0
    for group in range(groups):
        tiles += _tiles_down(m_indptr, group) * across
    return tiles


@gluon.jit
def _load(rings, a, b, m_indptr, sizes):
    """Fills a stage of the ring as soon as all parts have multiplied what was in it."""
    a_ring, b_ring, filled, emptied = rings
    groups, _, n, blocks = sizes
    step = 0
    across = n // BLOCK
    for tile in range(gl.program_id(0), _count(m_indptr, groups, across), gl.num_programs(0)):
        group, row, _, column = _place(tile, m_indptr, groups, across)
        for block in range(blocks):
            stage = step % STAGES
            mbarrier.wait(emptied.index(stage), step // STAGES & 1 ^ 1)
            mbarrier.expect(filled.index(stage), (PART * PARTS + BLOCK) * BLOCK)
            for part in gl.static_range(PARTS):
                room = a_ring.index(stage * PARTS + part)
                copy_in(a, [row + part * PART, block * BLOCK], filled.index(stage), room)
            place = [group * n + column, block * BLOCK]
            copy_in(b, place, filled.index(stage), b_ring.index(stage))
            step += 1


@gluon.jit
def _multiply(rings, out, out_pointer, out_rooms, a_scale, b_scale, m_indptr, sizes, strides, WHICH: gl.constexpr):
    """One part's rows of every tile. The next block's scales are loaded while a block's product is computed."""
    a_ring, b_ring, filled, emptied = rings
    groups, rows, n, blocks = sizes
    a_row_stride, a_block_stride, b_group_stride, b_row_stride, b_block_stride = strides
    out_room = out_rooms.index(WHICH)
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 32])
    across = n // BLOCK
    index = gl.arange(0, PART, gl.SliceLayout(1, layout))
    product = gl.zeros([PART, BLOCK], gl.float32, layout)
    step = 0
    for tile in range(gl.program_id(0), _count(m_indptr, groups, across), gl.num_programs(0)):
        group, row, end, column = _place(tile, m_indptr, groups, across)
        row += WHICH * PART
        a_scales = a_scale + gl.minimum(row + index, rows - 1) * a_row_stride
        b_scales = b_scale + (group * b_group_stride + column // BLOCK * b_row_stride)
        scale = gl.load(a_scales) * gl.load(b_scales)
        total = gl.zeros([PART, BLOCK], gl.float32, layout)
        for block in range(blocks):
            stage = step % STAGES
            ahead = gl.minimum(block + 1, blocks - 1)
            next_a, next_b = gl.load(a_scales + ahead * a_block_stride), gl.load(b_scales + ahead * b_block_stride)
            mbarrier.wait(filled.index(stage), step // STAGES & 1)
            left, right = a_ring.index(stage * PARTS + WHICH), b_ring.index(stage).permute((1, 0))
            token = warpgroup_mma(left, right, product, use_acc=False, is_async=True)
            product = warpgroup_mma_wait(0, deps=[token])
            mbarrier.arrive(emptied.index(stage), count=1)
            total += product * scale[:, None]
            scale = next_a * next_b
            step += 1
        result = total.to(out.dtype)
        if row + PART <= end:
            tma.store_wait(0)
            out_room.store(result)
            fence_async_shared()
            copy_out(out, [row, column], out_room)
        else:  # the copy engine would write into the next group's rows
            columns = column + gl.arange(0, BLOCK, gl.SliceLayout(0, layout))
            pointers = out_pointer + (row + index)[:, None].to(gl.int64) * n + columns[None, :]
            gl.store(pointers, result, mask=(row + index < end)[:, None])
    tma.store_wait(0)


@gluon.jit
def gemm_hopper(
    a, b, a_scale, b_scale, out, out_pointer, m_indptr, groups, rows, n, blocks,
    a_row_stride, a_block_stride, b_group_stride, b_row_stride, b_block_stride,
):  # fmt: skip
    """Tiles of TILE_ROWS x 128. ``blocks`` counts those of k; b has the groups' rows one behind the other.

    Args:
        a, b, out: descriptors of blocks of 64 x 128, 128 x 128 and 64 x 128.
    """
    a_ring = gl.allocate_shared_memory(a.dtype, [STAGES * PARTS, PART, BLOCK], a.layout)
    b_ring = gl.allocate_shared_memory(b.dtype, [STAGES, BLOCK, BLOCK], b.layout)
    out_rooms = gl.allocate_shared_memory(out.dtype, [PARTS, PART, BLOCK], out.layout)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=PARTS)
    rings = (a_ring, b_ring, filled, emptied)
    sizes = (groups, rows, n, blocks)
    strides = (a_row_stride, a_block_stride, b_group_stride, b_row_stride, b_block_stride)
    gl.warp_specialize(
        [
            (_multiply, (rings, out, out_pointer, out_rooms, a_scale, b_scale, m_indptr, sizes, strides, 0)),
            (_multiply, (rings, out, out_pointer, out_rooms, a_scale, b_scale, m_indptr, sizes, strides, 1)),
            (_multiply, (rings, out, out_pointer, out_rooms, a_scale, b_scale, m_indptr, sizes, strides, 2)),
            (_load, (rings, a, b, m_indptr, sizes)),
        ],
        [4, 4, 1],
        [REGISTERS_TO_MULTIPLY, REGISTERS_TO_MULTIPLY, REGISTERS_TO_LOAD],
    )
