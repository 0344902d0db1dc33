"""Layouts of scales, against the documented byte formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats.scale_layout import (
    LAYOUTS,
    arrange,
    padded_shape,
    padding,
    restore,
    swizzle_128x4,
    unswizzle_128x4,
)
from tests.formats.brute_force import place_of

SHAPES = [(200, 7), (1, 1), (128, 4), (129, 5), (127, 3), (1, 128), (300, 1), (256, 12), (8, 4), (9, 5), (7, 3)]
TILE = {"128x4": (128, 4), "8x4": (8, 4), "linear": (1, 1)}

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_shape = pytest.mark.parametrize(("rows", "columns"), SHAPES)


def scales_of(*shape: int) -> torch.Tensor:
    """No zeros, so that padding shows."""
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def numbered(*shape: int) -> torch.Tensor:
    """1, 2, 3 …: each scale is told from every other."""
    return torch.arange(1, math.prod(shape) + 1).reshape(shape)


@each_layout
@each_shape
def test_every_byte_lies_where_the_formula_says(layout, rows, columns):
    scales = scales_of(rows, columns)
    arranged = arrange(scales, layout)
    tile = TILE[layout]
    assert arranged.shape == (-(-rows // tile[0]) * tile[0], -(-columns // tile[1]) * tile[1])
    assert arranged.shape == padded_shape(layout, rows, columns)
    assert arranged.dtype is torch.uint8
    assert arranged.is_contiguous()
    expected = torch.zeros(arranged.numel(), dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            expected[place_of(layout, row, column, rows, columns)] = scales[row, column]
    assert torch.equal(arranged.flatten(), expected)


@each_layout
@each_shape
def test_restoring_undoes_it(layout, rows, columns):
    scales = scales_of(rows, columns)
    arranged = arrange(scales, layout)
    assert torch.equal(restore(arranged, layout, (rows, columns)), scales)
    assert torch.equal(restore(arranged.flatten(), layout, (rows, columns)), scales)


@each_layout
@given(rows=st.integers(1, 300), columns=st.integers(1, 17), batch=st.lists(st.integers(1, 3), max_size=2))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_layout_is_a_permutation_and_zeros(layout, rows, columns, batch):
    shape = (*batch, rows, columns)
    scales = numbered(*shape)
    arranged = arrange(scales, layout)
    assert torch.equal(arranged[arranged != 0].sort().values, scales.flatten())
    assert torch.equal(arranged == 0, padding(layout, shape))
    assert torch.equal(restore(arranged.flatten(), layout, shape), scales)


@each_layout
def test_the_entries_of_a_batch_are_padded_and_laid_out_alone(layout):
    scales = numbered(3, 130, 6)
    arranged = arrange(scales, layout)
    assert arranged.shape == (3, *padded_shape(layout, 130, 6))
    for entry in range(3):
        assert torch.equal(arranged[entry], arrange(scales[entry], layout))


def test_a_batch_in_128x4_is_not_the_layout_of_its_rows_in_one():
    """With 64 rows each two entries would share a tile; padded alone they do not."""
    scales = numbered(2, 64, 4)
    assert arrange(scales, "128x4").numel() == 2 * arrange(scales.flatten(0, 1), "128x4").numel()


@each_layout
def test_other_formats_of_scales(layout):
    scales = scales_of(130, 6)
    e4m3 = arrange(scales.view(torch.float8_e4m3fn), layout)
    assert e4m3.dtype is torch.float8_e4m3fn
    assert torch.equal(e4m3.view(torch.uint8), arrange(scales, layout))


def test_the_layout_of_matrix_products_by_its_own_name():
    scales = scales_of(130, 6)
    swizzled = swizzle_128x4(scales)
    assert torch.equal(swizzled, arrange(scales, "128x4"))
    assert torch.equal(unswizzle_128x4(swizzled, 130, 6), scales)


def test_an_input_that_is_not_contiguous():
    scales = scales_of(6, 130).T
    assert not scales.is_contiguous()
    for layout in LAYOUTS:
        assert torch.equal(arrange(scales, layout), arrange(scales.contiguous(), layout))
        assert arrange(scales, layout).is_contiguous()
