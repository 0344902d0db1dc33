from __future__ import annotations

import torch

from flashinfer_perf.routines.moe_comm.packed import ALIGNMENT, add_up, pack, unpack

ROWS = (
    torch.arange(6, dtype=torch.int32).view(3, 2),
    torch.arange(6, dtype=torch.float32).view(3, 2) / 7,
    torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    torch.arange(9, dtype=torch.uint8).view(3, 3),
)
WANTED = torch.tensor([[True, False], [True, True], [False, True]])


def test_rows_are_packed_by_receiver_and_come_out_as_they_were():
    packed = pack(ROWS, WANTED)
    assert packed.shape == (4, 4 * ALIGNMENT)
    for found, part in zip(unpack(packed, ROWS), ROWS, strict=True):
        assert found.dtype is part.dtype
        assert torch.equal(found, part[[0, 1, 1, 2]])


def test_nothing_to_send_is_no_row():
    assert pack(ROWS, torch.zeros(3, 2, dtype=torch.bool)).shape == (0, 4 * ALIGNMENT)


def test_answers_are_added_in_fp32_and_rounded_once():
    returned = torch.tensor([[256.0], [1.0], [1.0], [5.0]]).bfloat16()
    out = torch.empty(3, 1, dtype=torch.bfloat16)
    add_up(returned, torch.tensor([[0, 1, 2], [-1, 3, -1], [-1, -1, -1]]), out)
    assert out.tolist() == [[258.0], [5.0], [0.0]]
