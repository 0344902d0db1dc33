"""Rows and blocks in the orders of TensorRT-LLM's kernels, against the documented maps and the library's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats.shuffle import (
    NARROW_BLOCK,
    block_major,
    interleave_halves,
    shuffle_rows,
    unshuffle_rows,
)


def rows(count: int) -> torch.Tensor:
    return torch.arange(3 * count).reshape(count, 3)


@pytest.mark.parametrize("count", [32, 64, 128, 416])
def test_every_row_goes_where_the_formula_says(count):
    before = rows(count)
    after = shuffle_rows(before)
    for row in range(count):
        block, inside = divmod(row, 32)
        assert torch.equal(after[32 * block + 8 * (inside % 4) + inside // 4], before[row])


@pytest.mark.parametrize("count", [32, 128, 256])
def test_it_is_the_librarys_shuffle(count):
    utils = pytest.importorskip("flashinfer.utils")
    before = rows(count)
    assert torch.equal(shuffle_rows(before), before[utils.get_shuffle_matrix_a_row_indices(before, 128)])


@pytest.mark.parametrize("count", [16, 48, 128])
def test_narrow_blocks_are_the_librarys(count):
    """A tile of 64 rows has blocks of 16."""
    utils = pytest.importorskip("flashinfer.utils")
    before = rows(count)
    after = shuffle_rows(before, NARROW_BLOCK)
    assert torch.equal(after, before[utils.get_shuffle_matrix_a_row_indices(before, 64)])
    assert torch.equal(unshuffle_rows(after, NARROW_BLOCK), before)


@pytest.mark.parametrize("count", [2, 6, 64])
def test_halves_are_interleaved_as_the_library_does(count):
    core = pytest.importorskip("flashinfer.fused_moe.core")
    before = rows(count)
    assert torch.equal(interleave_halves(before), core.reorder_rows_for_gated_act_gemm(before))
    assert interleave_halves(torch.arange(6)).tolist() == [0, 3, 1, 4, 2, 5]


def test_blocks_of_columns_are_the_librarys():
    core = pytest.importorskip("flashinfer.fused_moe.core")
    before = torch.arange(5 * 384).reshape(5, 384)
    after = block_major(before)
    assert after.shape == (3, 5, 128)
    assert after.is_contiguous()
    assert torch.equal(after, core.convert_to_block_layout(before, 128))


@given(st.integers(0, 12), st.integers(1, 5))
@settings(derandomize=True, deadline=None)
def test_the_inverse_undoes_it(blocks, columns):
    before = torch.arange(32 * blocks * columns).reshape(32 * blocks, columns)
    assert torch.equal(unshuffle_rows(shuffle_rows(before)), before)
    assert torch.equal(shuffle_rows(unshuffle_rows(before)), before)


def test_it_is_not_its_own_inverse():
    assert not torch.equal(shuffle_rows(rows(32)), unshuffle_rows(rows(32)))


def test_any_number_of_dimensions_and_any_format():
    before = torch.arange(64 * 6, dtype=torch.uint8).reshape(64, 2, 3).view(torch.float8_e4m3fn)
    after = shuffle_rows(before)
    assert after.shape == before.shape
    assert torch.equal(after.view(torch.uint8).flatten(1), shuffle_rows(before.view(torch.uint8).flatten(1)))
    assert shuffle_rows(torch.arange(32)).tolist()[:3] == [0, 4, 8]


@pytest.mark.parametrize("count", [1, 16, 33, 127])
def test_rows_that_are_no_whole_blocks_are_refused(count):
    for function in (shuffle_rows, unshuffle_rows):
        with pytest.raises(ValueError, match=f"{count} rows cannot be shuffled: .* a multiple of 32"):
            function(rows(count))
