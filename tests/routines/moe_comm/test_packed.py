from __future__ import annotations

import torch

from flashinfer_perf.routines.moe_comm.packed import ALIGNMENT, add_up, pack, plan, unpack
from flashinfer_perf.routines.moe_comm.routing import Experts

ROWS = (
    torch.arange(6, dtype=torch.int32).view(3, 2),
    torch.arange(6, dtype=torch.float32).view(3, 2) / 7,
    torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    torch.arange(9, dtype=torch.uint8).view(3, 3),
)
CHOSEN = torch.tensor([[0, 1], [0, 3], [3, 2]], dtype=torch.int32)
"""Of four experts, on two ranks."""


def test_rows_for_the_first_rank_come_first():
    order, counts = plan(Experts(4, 2), CHOSEN)
    assert order.tolist() == [[0, -1], [1, 2], [-1, 3]]
    assert counts.tolist() == [[2, 2], [0, 0]]
    assert order.dtype is torch.int32


def test_there_is_no_room_for_more_rows_than_a_token_has_experts():
    one, order = torch.zeros(3, 1, dtype=torch.int32), torch.tensor([[0, -1], [-1, 1], [-1, 2]], dtype=torch.int32)
    packed = pack((one, *ROWS[1:]), order)
    assert len(packed) == 3
    assert torch.equal(unpack(packed, (one, *ROWS[1:]))[2], ROWS[2])


def test_rows_are_packed_by_receiver_and_come_out_as_they_were():
    packed = pack(ROWS, plan(Experts(4, 2), CHOSEN)[0])
    assert packed.shape == (6, 4 * ALIGNMENT)
    for found, part in zip(unpack(packed[:4], ROWS), ROWS, strict=True):
        assert found.dtype is part.dtype
        assert torch.equal(found, part[[0, 1, 1, 2]])


def test_answers_are_added_in_fp32_and_rounded_once():
    returned = torch.tensor([[256.0], [1.0], [1.0], [5.0]]).bfloat16()
    out = torch.empty(3, 1, dtype=torch.bfloat16)
    add_up(returned, torch.tensor([[0, 1, 2], [-1, 3, -1], [-1, -1, -1]], dtype=torch.int32), out)
    assert out.tolist() == [[258.0], [5.0], [0.0]]
