"""Swizzled scales, against the documented byte formula."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.formats.scale_layout import swizzle_128x4, unswizzle_128x4

SHAPES = [(200, 7), (1, 1), (128, 4), (129, 5), (127, 3), (1, 128), (300, 1), (256, 12)]


def place_of(row: int, column: int, columns: int) -> int:
    """Tiles of 128 x 4, 512 bytes each, row of tiles by row of tiles."""
    tiles_across = -(-columns // 4)
    tile = (row // 128) * tiles_across + column // 4
    return tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4


def scales_of(rows: int, columns: int) -> torch.Tensor:
    """No zeros, so that padding shows."""
    return torch.randint(1, 256, (rows, columns), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_byte_lies_where_the_formula_says(rows, columns):
    scales = scales_of(rows, columns)
    swizzled = swizzle_128x4(scales)
    assert swizzled.shape == (-(-rows // 128) * 128, -(-columns // 4) * 4)
    assert swizzled.dtype is torch.uint8
    assert swizzled.is_contiguous()
    expected = torch.zeros(swizzled.numel(), dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            expected[place_of(row, column, columns)] = scales[row, column]
    assert torch.equal(swizzled.flatten(), expected)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_unswizzling_undoes_it(rows, columns):
    scales = scales_of(rows, columns)
    swizzled = swizzle_128x4(scales)
    assert torch.equal(unswizzle_128x4(swizzled, rows, columns), scales)
    assert torch.equal(unswizzle_128x4(swizzled.flatten(), rows, columns), scales)


def test_other_formats_of_scales():
    scales = scales_of(130, 6)
    e4m3 = swizzle_128x4(scales.view(torch.float8_e4m3fn))
    assert e4m3.dtype is torch.float8_e4m3fn
    assert torch.equal(e4m3.view(torch.uint8), swizzle_128x4(scales))
