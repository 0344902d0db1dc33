"""The order of k: a permutation, undone by its inverse, that gives every thread one block of weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.fp4_order import CHUNK, column_at, inner_rows, position_of

COLUMNS = torch.arange(3 * CHUNK)


def test_each_position_has_one_column():
    positions = position_of.fn(COLUMNS)
    assert torch.equal(column_at.fn(positions), COLUMNS)
    assert torch.equal(positions.sort().values, COLUMNS)
    assert torch.equal(positions // CHUNK, COLUMNS // CHUNK), "columns stay in their chunk"


@pytest.mark.parametrize("quad", range(4))
def test_a_thread_multiplies_what_has_one_scale(quad):
    """WGMMA's left operand: of 16 of k, thread q of a quad holds these four."""
    held = torch.tensor([2 * quad, 2 * quad + 1, 2 * quad + 8, 2 * quad + 9])
    columns = torch.cat([column_at.fn(start + held) for start in range(0, CHUNK, 16)])
    assert torch.equal(columns.sort().values, 16 * quad + torch.arange(16))


def test_a_column_of_both_parts_meets_in_one_thread():
    rows = inner_rows(CHUNK, gated=True).view(-1, 2, 8)
    assert torch.equal(rows[:, 1], rows[:, 0] + CHUNK)
    assert torch.equal(rows[:, 0].reshape(-1), inner_rows(CHUNK, gated=False))
    assert torch.equal(rows.flatten().sort().values, torch.arange(2 * CHUNK))
