"""Block quantisers in Triton, for every NVIDIA GPU since Ampere: MXFP8, MXFP4 and NVFP4, bit for bit as ``formats``.

All of them write into tensors that the caller made. Rows are what lies before the last axis, contiguous; scales go
into one of ``formats.scale_layout.LAYOUTS``, with the padding of its tiles set to zero.
"""

from __future__ import annotations

import torch
import triton

from flashinfer_perf.formats import mxfp4, mxfp8, nvfp4, scale_layout, shuffle
from flashinfer_perf.kernels.quantize_blocks import quantize_blocks
from flashinfer_perf.kernels.quantize_tuning import QuantizeTiling, tiling

FP8_CONVERSION = (8, 9)
"""Compute capability from which there is an instruction that converts to E4M3."""
INTERPRETED = (0, 0)
ALIGNMENT = 16
"""Bytes that a thread reads or writes at once."""
GRID_LIMIT = 65535
COMPILER_OPTIONS = {"enable_fp_fusion": False}
"""A product is rounded before something is added to it: ties depend on that."""


def quantize_mxfp8(
    x: torch.Tensor,
    x_q: torch.Tensor,
    sf: torch.Tensor,
    layout: str,
    *,
    tiles: QuantizeTiling | None = None,
    hardware: bool | None = None,
) -> None:
    """Blocks of 32 E4M3 elements with E8M0 scales; see ``formats.mxfp8.encode``.

    Args:
        x: (rows, columns) bf16 or fp16; columns a multiple of 32.
        x_q: (rows, padded columns) float8_e4m3fn or uint8; columns a multiple of 32, those that x does not have
            become zeros under scales of byte 0.
        sf: uint8 of any shape, with the bytes of (rows, padded columns / 32) in the layout.
        layout: 128x4, 8x4 or linear.
        tiles: how to cut the work; what suits the GPU unless given.
        hardware: convert by an instruction of compute capability 8.9; where there is one unless given.
    """
    blocks = _blocks(x, mxfp8.BLOCK)
    out_blocks, rest = divmod(x_q.shape[-1], mxfp8.BLOCK)
    if rest or out_blocks < blocks:
        raise ValueError(f"x_q has {x_q.shape[-1]} columns: give a multiple of 32, at least {x.shape[-1]}")
    _launch("mxfp8", x, x_q, sf, None, layout, False, blocks, out_blocks, tiles, hardware)


def quantize_mxfp4(
    x: torch.Tensor, x_q: torch.Tensor, sf: torch.Tensor, layout: str, *, tiles: QuantizeTiling | None = None
) -> None:
    """Blocks of 32 E2M1 elements with E8M0 scales; see ``formats.mxfp4.encode``.

    Args:
        x: (rows, columns) bf16 or fp16; columns a multiple of 32.
        x_q: (rows, columns / 2) uint8, two elements to a byte.
        sf: uint8 of any shape, with the bytes of (rows, columns / 32) in the layout.
        layout: 128x4, 8x4 or linear.
        tiles: how to cut the work; what suits the GPU unless given.
    """
    blocks = _blocks(x, mxfp4.BLOCK)
    _launch("mxfp4", x, x_q, sf, None, layout, False, blocks, blocks, tiles, False)


def quantize_nvfp4(
    x: torch.Tensor,
    x_q: torch.Tensor,
    sf: torch.Tensor,
    global_scale: torch.Tensor,
    layout: str,
    *,
    shuffled: bool = False,
    tiles: QuantizeTiling | None = None,
) -> None:
    """Blocks of 16 E2M1 elements with E4M3 scales and one fp32 scale; see ``formats.nvfp4.encode``.

    Args:
        x: (rows, columns) or (batch, rows, columns) bf16 or fp16; columns a multiple of 16.
        x_q: as x, with columns / 2 of uint8, two elements to a byte.
        sf: uint8 of any shape, with the bytes of (…, rows, columns / 16) in the layout; each entry of a batch is
            padded for itself.
        global_scale: one fp32 on x's device, positive and finite; it multiplies.
        layout: 128x4, 8x4 or linear.
        shuffled: rows of x_q and sf in the order of ``formats.shuffle``; their number a multiple of 32.
        tiles: how to cut the work; what suits the GPU unless given.
    """
    if global_scale.numel() != 1 or global_scale.dtype != torch.float32:
        raise ValueError(f"global_scale is {tuple(global_scale.shape)} of {global_scale.dtype}: give one float32")
    if shuffled and x.shape[-2] % shuffle.BLOCK:
        raise ValueError(f"{x.shape[-2]} rows cannot be shuffled: give a multiple of {shuffle.BLOCK}")
    blocks = _blocks(x, nvfp4.BLOCK)
    _launch("nvfp4", x, x_q, sf, global_scale, layout, shuffled, blocks, blocks, tiles, False)


def _launch(
    format: str,
    x: torch.Tensor,
    x_q: torch.Tensor,
    sf: torch.Tensor,
    global_scale: torch.Tensor | None,
    layout: str,
    shuffled: bool,
    blocks: int,
    out_blocks: int,
    tiles: QuantizeTiling | None,
    hardware: bool | None,
) -> None:
    *batch, rows, _ = x.shape
    entries = batch[0] if batch else 1
    padded_rows, padded_blocks = scale_layout.padded_shape(layout, rows, out_blocks)
    bytes_in_row = out_blocks * (32 if format == "mxfp8" else 16 if format == "mxfp4" else 8)
    _check_output("x_q", x_q, (*x.shape[:-1], bytes_in_row))
    _check_output("sf", sf, (entries * padded_rows * padded_blocks,), flat=True)
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else INTERPRETED
    tiles = tiles or tiling(format, capability)
    across = triton.cdiv(padded_blocks, tiles.blocks)
    grid = (triton.cdiv(across, tiles.parts), triton.cdiv(padded_rows, tiles.rows), entries)
    if max(grid[1:]) > GRID_LIMIT:
        raise ValueError(f"{entries} x {rows} rows are too many for tiles of {tiles.rows}: split the tensor")
    if 0 in grid:
        return
    quantize_blocks[grid](
        x,
        x_q.view(torch.uint8),
        sf.view(torch.uint8),
        x if global_scale is None else global_scale,
        rows,
        padded_rows,
        blocks,
        out_blocks,
        min(tiles.parts, across),
        FORMAT=format,
        HALF=x.dtype == torch.float16,
        LAYOUT=layout,
        SHUFFLED=shuffled,
        HARDWARE=capability >= FP8_CONVERSION if hardware is None else hardware,
        ROWS=tiles.rows,
        BLOCKS=tiles.blocks,
        WHOLE=tiles.whole,
        num_warps=tiles.warps,
        **COMPILER_OPTIONS,
    )


def _blocks(x: torch.Tensor, block: int) -> int:
    """Blocks in a row of a valid input."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x is {x.dtype}: give bfloat16 or float16")
    if x.dim() not in (2, 3) or x.shape[-1] % block:
        raise ValueError(f"x is {tuple(x.shape)}: give (rows, columns) or (batch, rows, columns), {block} to a block")
    _check_memory("x", x)
    return x.shape[-1] // block


def _check_output(name: str, output: torch.Tensor, shape: tuple[int, ...], *, flat: bool = False) -> None:
    found = (output.numel(),) if flat else tuple(output.shape)
    if output.element_size() != 1 or found != shape:
        raise ValueError(f"{name} is {tuple(output.shape)} of {output.dtype}: give {shape} of bytes")
    _check_memory(name, output)


def _check_memory(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
        raise ValueError(f"{name} must be contiguous and start at a multiple of {ALIGNMENT} bytes")
