"""Orders of experts' weights in which other libraries want or give them; ours are up before gate, scales row by row."""

from __future__ import annotations

from flashinfer_perf.formats.scale_layout import swizzle_128x4, unswizzle_128x4
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.trtllm_call import each_expert


def exchanged(weight: torch.Tensor) -> torch.Tensor:
    """(experts, 2 n, …) with its two halves exchanged: gate before up, or up before gate."""
    return each_expert(weight, lambda rows: torch.cat(rows.chunk(2)[::-1]))


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """Block scales (experts, rows, blocks), bytes row by row, as e4m3 in tiles of 128x4; each expert is padded."""
    return each_expert(scales, swizzle_128x4).view(torch.float8_e4m3fn)


def by_rows(scales: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """The inverse: bytes, (experts, rows, blocks)."""
    return each_expert(scales.view(torch.uint8), lambda tiles: unswizzle_128x4(tiles, rows, blocks))
