"""When packing is worth its while; the exchange itself: ``test_several_ranks.py``."""

from __future__ import annotations

import pytest

from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.routines.moe_comm.whole import worth_packing

ROW = 14400


@pytest.mark.parametrize(
    ("ranks", "top_k", "tokens", "packs"),
    [
        (1, 8, 4096, False),  # nothing is sent
        (2, 8, 1, False),
        (2, 8, 4096, False),  # one row in 256 is not needed
        (2, 1, 64, False),  # half of them, but they are few
        (2, 1, 4096, False),  # sending them takes 113 us, not sending them longer
        (2, 1, 32768, True),
        (8, 8, 64, False),
        (8, 8, 4096, True),  # a third
        (64, 8, 1024, True),
    ],
)
def test_rows_are_packed_where_many_are_not_needed(ranks, top_k, tokens, packs):
    assert worth_packing(Experts(256, ranks), top_k, tokens, ROW) is packs
