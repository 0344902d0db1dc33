"""Where block scales lie in memory: row by row, or swizzled into the tiles that tensor cores read.

Every function takes (…, rows, columns); what stands before is a batch, each entry of which is padded and laid out for
itself, one behind the other. Any format of one byte is moved as it is.
"""

from __future__ import annotations

from flashinfer_perf.lazy import torch

LINEAR = "linear"
LAYOUTS = ("128x4", "8x4", LINEAR)
"""By the names that the command line uses."""
TILE_ROWS = 128
TILE_COLUMNS = 4
GROUPS = {"128x4": (4, 32), "8x4": (1, 8)}
"""A tile's rows: so many groups of so many; the four scales of a row lie beside those of its peers in other groups."""


def padded_shape(layout: str, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of scales with the padding that fills the last tiles; without any in the linear layout."""
    if layout == LINEAR:
        return rows, columns
    groups, inner = GROUPS[layout]
    tile = groups * inner
    return -(-rows // tile) * tile, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def arrange(scales: torch.Tensor, layout: str) -> torch.Tensor:
    """(…, rows, columns) bytes in a layout, padded with zeros to whole tiles.

    With T tiles in a row of tiles, scale (i, j) goes to byte
    ((i // 128) * T + j // 4) * 512 + (i % 32) * 16 + (i % 128 // 32) * 4 + j % 4 in 128x4, to byte
    ((i // 8) * T + j // 4) * 32 + (i % 8) * 4 + j % 4 in 8x4.

    Returns:
        (…, padded rows, padded columns), contiguous: the tiles one behind the other.
    """
    if layout == LINEAR:
        return scales.contiguous()
    *batch, rows, columns = scales.shape
    down, across = padded_shape(layout, rows, columns)
    padded = torch.zeros(*batch, down, across, dtype=scales.dtype, device=scales.device)
    padded[..., :rows, :columns] = scales
    groups, inner = GROUPS[layout]
    tiles = padded.view(*batch, -1, groups, inner, across // TILE_COLUMNS, TILE_COLUMNS)
    return tiles.transpose(-4, -2).reshape(padded.shape)


def restore(arranged: torch.Tensor, layout: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse: any shape of the padded size to (…, rows, columns)."""
    *batch, rows, columns = shape
    if layout == LINEAR:
        return arranged.reshape(shape)
    down, across = padded_shape(layout, rows, columns)
    groups, inner = GROUPS[layout]
    tiles = arranged.reshape(*batch, -1, across // TILE_COLUMNS, inner, groups, TILE_COLUMNS).transpose(-4, -2)
    return tiles.reshape(*batch, down, across)[..., :rows, :columns]


def padding(layout: str, shape: tuple[int, ...], device: torch.device | str = "cpu") -> torch.Tensor:
    """(…, padded rows, padded columns) booleans: the bytes of a layout that hold no scale of (…, rows, columns)."""
    return ~arrange(torch.ones(shape, dtype=torch.bool, device=device), layout)


def swizzle_128x4(scales: torch.Tensor) -> torch.Tensor:
    """``arrange`` in 128x4, the layout of most matrix products."""
    return arrange(scales, "128x4")


def unswizzle_128x4(swizzled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse: any shape of the padded size to (rows, columns)."""
    return restore(swizzled, "128x4", (rows, columns))
