"""A grouped product, of FP8 or 16 bits, for Hopper and many rows of an expert, in Gluon; as ``gemm_fp8_hopper`` does,
whose parts it uses.

A program takes tile after tile: up to PARTS x 64 rows of an expert, times COLUMNS of the expert's weights. One warp has
the copy engine bring blocks of k into a ring of buffers, and no part of the rows that has none. As many groups of four
warps have 64 rows each; one without rows lets the others' products pass. Experts' rows begin at multiples of 64, so
that the copy engine may write whole parts.
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

from flashinfer_perf.kernels.gemm_fp8_hopper import (
    BLOCK,
    PART,
    REGISTERS_TO_LOAD,
    REGISTERS_TO_MULTIPLY,
    copy_in,
    copy_out,
    reinterpret,
)
from flashinfer_perf.kernels.moe import activations, rows

REGISTERS_OF_TWO = gl.constexpr(168)
"""Of a thread, where there are two parts: they have room for sums of 256 columns."""
ROW_BYTES = gl.constexpr(128)
"""Of a row in a block of k: as many as the copy engine swizzles."""
INSTRUCTION_BYTES = gl.constexpr(32)
"""Of a row, in a tensor core's product."""
OUT_WIDTH = gl.constexpr(128)
"""Columns, at most, that a part has room for on their way out."""
activate, to_e4m3 = gluon.jit(activations.activate.fn), gluon.jit(rows.to_e4m3.fn)


@gluon.jit
def _place(tile, table, across, PARTS: gl.constexpr):
    """Of a tile: its expert, first row, how many parts have rows, and its number among those across.

    Blocks next to each other take the same columns at the same time; see ``tiles.place``.
    """
    blocks, stride, neighbours = table
    band = tile // (neighbours * across)
    within = tile % (neighbours * across)
    height = gl.minimum(gl.load(blocks) - band * neighbours, neighbours)
    entry = blocks + 1 + band * neighbours + within % height
    row = gl.load(entry + stride)
    parts = gl.minimum(gl.cdiv(gl.load(entry + 2 * stride) - row, PART), PARTS)
    return gl.load(entry), row, parts, within // height


@gluon.jit
def _load(
    rings, x, w, table, sizes,
    GATED: gl.constexpr, COLUMNS: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fills a stage of the ring as soon as all parts have multiplied what was in it."""
    x_ring, w_ring, filled, emptied = rings
    n, across, blocks_of_k = sizes
    BOXES: gl.constexpr = 2 if GATED else 1
    step = 0
    for tile in range(gl.program_id(0), gl.load(table[0]) * across, gl.num_programs(0)):
        expert, row, parts, number = _place(tile, table, across, PARTS)
        w_row = expert * (BOXES * n) + number * (COLUMNS // BOXES)
        for block in range(blocks_of_k):
            stage = step % STAGES
            mbarrier.wait(emptied.index(stage), step // STAGES & 1 ^ 1)
            for count in gl.static_range(1, PARTS + 1):
                mbarrier.expect(filled.index(stage), (count * PART + COLUMNS) * ROW_BYTES, pred=parts == count)
            for part in gl.static_range(PARTS):
                place = [row + part * PART, block * x.block_shape[1]]
                copy_in(x, place, filled.index(stage), x_ring.index(stage * PARTS + part), pred=part < parts)
            for box in gl.static_range(BOXES):
                place = [w_row + box * n, block * x.block_shape[1]]
                copy_in(w, place, filled.index(stage), w_ring.index(stage * BOXES + box))
            step += 1


@gluon.jit
def _halves(tile):
    """Left and right half of a tile; every thread has as much of both."""
    return gl.split(tile.reshape([tile.shape[0], 2, tile.shape[1] // 2]).permute([0, 2, 1]))


@gluon.jit
def _in_blocks(
    rings, x_scales, w_scales, step, sizes,
    WHICH: gl.constexpr, GATED: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """A part's sum over k of blocks' products, scaled. The next scales are loaded while a product is computed."""
    x_ring, w_ring, filled, emptied = rings
    n, _, blocks_of_k = sizes
    right_half = gl.arange(0, BLOCK, gl.SliceLayout(0, LAYOUT)) >= BLOCK // 2
    total = gl.zeros([PART, BLOCK], gl.float32, LAYOUT)
    product = gl.zeros([PART, BLOCK], gl.float32, LAYOUT)
    gate_scales = w_scales + (n // BLOCK * blocks_of_k if GATED else 0)
    x_scale, w_scale, gate_scale = gl.load(x_scales), gl.load(w_scales), gl.load(gate_scales)
    for block in range(blocks_of_k):
        stage = step % STAGES
        ahead = gl.minimum(block + 1, blocks_of_k - 1)
        next_x, next_w, next_gate = gl.load(x_scales + ahead), gl.load(w_scales + ahead), gl.load(gate_scales + ahead)
        mbarrier.wait(filled.index(stage), step // STAGES & 1)
        left, right = x_ring.index(stage * PARTS + WHICH), w_ring.index(stage).permute((1, 0))
        token = warpgroup_mma(left, right, product, use_acc=False, is_async=True)
        product = warpgroup_mma_wait(0, deps=[token])
        mbarrier.arrive(emptied.index(stage), count=1)
        if GATED:
            left_scale, right_scale = (x_scale * w_scale)[:, None], (x_scale * gate_scale)[:, None]
            total += product * gl.where(right_half[None, :], right_scale, left_scale)
        else:
            total += product * (x_scale * w_scale)[:, None]
        x_scale, w_scale, gate_scale = next_x, next_w, next_gate
        step += 1
    return total


@gluon.jit
def _plain(
    rings, step, blocks_of_k,
    WHICH: gl.constexpr, COLUMNS: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """A part's sum over k of elements' products; one block's begin while those of the block before it end."""
    x_ring, w_ring, filled, emptied = rings
    total = gl.zeros([PART, COLUMNS], gl.float32, LAYOUT)
    for block in range(blocks_of_k):
        stage = step % STAGES
        mbarrier.wait(filled.index(stage), step // STAGES & 1)
        left, right = x_ring.index(stage * PARTS + WHICH), w_ring.index(stage).permute((1, 0))
        token = warpgroup_mma(left, right, total, use_acc=block > 0, is_async=True)
        total = warpgroup_mma_wait(1, deps=[token])
        mbarrier.arrive(emptied.index((step + STAGES - 1) % STAGES), count=1, pred=block > 0)
        step += 1
    total = warpgroup_mma_wait(0, deps=[total])
    mbarrier.arrive(emptied.index((step + STAGES - 1) % STAGES), count=1)
    return total


@gluon.jit
def _pass(rings, step, blocks_of_k, STAGES: gl.constexpr):
    """What a part without rows does."""
    _, _, filled, emptied = rings
    for _ in range(blocks_of_k):
        mbarrier.wait(filled.index(step % STAGES), step // STAGES & 1)
        mbarrier.arrive(emptied.index(step % STAGES), count=1)
        step += 1


@gluon.jit
def _by_channel(tile, scales, column, n, BY_CHANNEL: gl.constexpr):
    """The tile times its columns' scales; those beyond n are not written."""
    if BY_CHANNEL:
        columns = column + gl.arange(0, tile.shape[1], gl.SliceLayout(0, tile.type.layout))
        tile = tile * gl.load(scales + gl.minimum(columns, n - 1))[None, :]
    return tile


@gluon.jit
def _store(out, room, value, out_scale, row, column):
    if out.dtype == gl.float8e4nv:
        rounded = to_e4m3(value, gl.load(out_scale))
    else:
        rounded = value.to(out.dtype)
    tma.store_wait(0)
    room.store(rounded)
    fence_async_shared()
    copy_out(out, [row, column], room)


@gluon.jit
def _finish(
    total, scales, out, room, out_scale, row, number, n,
    BY_CHANNEL: gl.constexpr, ACTIVATION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Scales of channels, activation, rounding, and the way to memory."""
    COLUMNS: gl.constexpr = total.shape[1]
    if GATED:
        column = number * (COLUMNS // 2)
        up, gate = _halves(total)
        up = _by_channel(up, scales, column, n, BY_CHANNEL)
        gate = _by_channel(gate, scales + n, column, n, BY_CHANNEL)
        _store(out, room, activate(up, gate, ACTIVATION), out_scale, row, column)
    elif COLUMNS > OUT_WIDTH:
        for side in gl.static_range(2):
            column = number * COLUMNS + side * OUT_WIDTH
            half = _by_channel(_halves(total)[side], scales, column, n, BY_CHANNEL)
            _store(out, room, activate(half, half, ACTIVATION), out_scale, row, column)
    else:
        value = _by_channel(total, scales, number * COLUMNS, n, BY_CHANNEL)
        _store(out, room, activate(value, value, ACTIVATION), out_scale, row, number * COLUMNS)


@gluon.jit
def _multiply(
    common,
    WHICH: gl.constexpr, SCALES: gl.constexpr, ACTIVATION: gl.constexpr, GATED: gl.constexpr, COLUMNS: gl.constexpr,
    PARTS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One part's rows of every tile."""
    rings, out, out_rooms, out_scale, x_scale, x_scale_stride, w_scale, table, sizes = common
    n, across, blocks_of_k = sizes
    BOXES: gl.constexpr = 2 if GATED else 1
    INSTRUCTION: gl.constexpr = INSTRUCTION_BYTES * 8 // rings[0].dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, COLUMNS, INSTRUCTION]
    )
    index = gl.arange(0, PART, gl.SliceLayout(1, layout))
    step = 0
    for tile in range(gl.program_id(0), gl.load(table[0]) * across, gl.num_programs(0)):
        expert, row, parts, number = _place(tile, table, across, PARTS)
        row += WHICH * PART
        if parts > WHICH:
            x_scales = x_scale + (row + index) * x_scale_stride
            if SCALES == "blocks":
                w_row = expert * (BOXES * n) + number * (COLUMNS // BOXES)
                w_scales = w_scale + w_row // BLOCK * blocks_of_k
                total = _in_blocks(rings, x_scales, w_scales, step, sizes, WHICH, GATED, PARTS, STAGES, layout)
                own = w_scale
            else:
                total = _plain(rings, step, blocks_of_k, WHICH, COLUMNS, PARTS, STAGES, layout)
                own = w_scale + (expert * (BOXES * n) if SCALES == "channel" else expert)
                scale = gl.load(x_scales) * gl.load(own) if SCALES == "tensor" else gl.load(x_scales)
                total *= scale[:, None]
            _finish(
                total, own, out, out_rooms.index(WHICH), out_scale, row, number, n, SCALES == "channel", ACTIVATION,
                GATED,
            )  # fmt: skip
        else:
            _pass(rings, step, blocks_of_k, STAGES)
        step += blocks_of_k
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["stride", "neighbours"])
def hopper_product(
    x, x_scale, x_scale_stride, w, w_scale, out, out_scale, blocks, stride, neighbours, n, across, blocks_of_k,
    SCALES: gl.constexpr, ACTIVATION: gl.constexpr, GATED: gl.constexpr, COLUMNS: gl.constexpr,
    PARTS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out[row] = activation of (x[row] times its expert's w), scaled.

    Args:
        x, w, out: descriptors; x of (rows, k) in blocks of 64 rows of 128 bytes; w of (experts' rows, k) in blocks of
            COLUMNS rows of 128 bytes, or half of them if gated; out of (rows, n) in blocks of 64 rows and as many
            columns as a tile has, 128 at most.
        x_scale: fp32, in blocks (rows, blocks_of_k); otherwise one of a row or, with stride 0, one of all.
        w_scale: fp32, (experts,) or of each channel, or in blocks (experts' rows / 128, blocks_of_k); not read if none.
        out_scale: fp32 (1,), of a result that is E4M3.
        blocks, stride: as ``sorting`` writes them, of PARTS x 64 rows.
        n: columns of the result; ``across`` tiles of COLUMNS, or half of them if gated.
        SCALES: none, tensor, channel or blocks, as those of w are; in blocks COLUMNS is 128.
        GATED: a tile has as many columns of the gate's as of the linear part, and half of them in the result.
    """
    BOXES: gl.constexpr = 2 if GATED else 1
    x_ring = gl.allocate_shared_memory(x.dtype, [STAGES * PARTS, PART, x.block_shape[1]], x.layout)
    w_ring = gl.allocate_shared_memory(w.dtype, [STAGES * BOXES, COLUMNS // BOXES, w.block_shape[1]], w.layout)
    w_tiles = reinterpret(w_ring, w.dtype, [STAGES, COLUMNS, w.block_shape[1]], w.layout)
    out_rooms = gl.allocate_shared_memory(out.dtype, [PARTS, out.block_shape[0], out.block_shape[1]], out.layout)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=PARTS)
    table, sizes = (blocks, stride, neighbours), (n, across, blocks_of_k)
    rings = (x_ring, w_tiles, filled, emptied)
    common = (rings, out, out_rooms, out_scale, x_scale, x_scale_stride, w_scale, table, sizes)
    boxes = (x_ring, w_ring, filled, emptied)
    if PARTS == 2:
        gl.warp_specialize(
            [
                (_multiply, (common, 0, SCALES, ACTIVATION, GATED, COLUMNS, PARTS, STAGES)),
                (_multiply, (common, 1, SCALES, ACTIVATION, GATED, COLUMNS, PARTS, STAGES)),
                (_load, (boxes, x, w, table, sizes, GATED, COLUMNS, PARTS, STAGES)),
            ],
            [4, 1],
            [REGISTERS_OF_TWO, REGISTERS_TO_LOAD],
        )
    else:
        gl.warp_specialize(
            [
                (_multiply, (common, 0, SCALES, ACTIVATION, GATED, COLUMNS, PARTS, STAGES)),
                (_multiply, (common, 1, SCALES, ACTIVATION, GATED, COLUMNS, PARTS, STAGES)),
                (_multiply, (common, 2, SCALES, ACTIVATION, GATED, COLUMNS, PARTS, STAGES)),
                (_load, (boxes, x, w, table, sizes, GATED, COLUMNS, PARTS, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS_TO_MULTIPLY, REGISTERS_TO_MULTIPLY, REGISTERS_TO_LOAD],
        )
