"""Where block scales lie in memory: row by row, or swizzled into the tiles that tensor cores read."""

from __future__ import annotations

from flashinfer_perf.lazy import torch

TILE_ROWS = 128
TILE_COLUMNS = 4


def swizzle_128x4(scales: torch.Tensor) -> torch.Tensor:
    """(rows, columns) bytes to the 128x4 layout, padded with zeros to whole tiles.

    Scale (i, j) goes to byte ((i // 128) * T + j // 4) * 512 + (i % 32) * 16 + (i % 128 // 32) * 4 + j % 4, with T
    tiles in a row of tiles.

    Returns:
        (rows rounded up to 128, columns rounded up to 4), holding the tiles one behind the other.
    """
    rows, columns = scales.shape
    tiles_down, tiles_across = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    padded = torch.zeros(tiles_down * TILE_ROWS, tiles_across * TILE_COLUMNS, dtype=scales.dtype, device=scales.device)
    padded[:rows, :columns] = scales
    tiles = padded.view(tiles_down, 4, 32, tiles_across, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def unswizzle_128x4(swizzled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse: any shape of the padded size to (rows, columns)."""
    tiles_down, tiles_across = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    tiles = swizzled.reshape(tiles_down, tiles_across, 32, 4, TILE_COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(tiles_down * TILE_ROWS, tiles_across * TILE_COLUMNS)[:rows, :columns]
