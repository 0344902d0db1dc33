from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.moe_comm.identity import examine, rows_of

IDS = torch.arange(24, dtype=torch.int32).view(8, 3) % 7
WIDE = (torch.empty(0, 5, dtype=torch.bfloat16), torch.empty(0, 2, dtype=torch.uint8))
NEEDED = torch.tensor([True, False, True, True, False, True, False, True])


def rows(*numbers: int) -> tuple[torch.Tensor, ...]:
    chosen = torch.tensor(numbers, dtype=torch.int64)
    return rows_of(chosen, IDS[chosen], WIDE)


def found(arrived: tuple[torch.Tensor, ...]) -> tuple[int, int, int, int]:
    arrivals = examine(arrived, IDS, NEEDED)
    assert arrivals.expected == 5
    assert arrivals.wrong == sum((arrivals.missing, arrivals.twice, arrivals.stray, arrivals.spoilt))
    return arrivals.missing, arrivals.twice, arrivals.stray, arrivals.spoilt


def test_rows_in_any_order_are_known():
    assert found(rows(7, 0, 3, 5, 2)) == (0, 0, 0, 0)


def test_what_is_missing_twice_or_astray_is_counted():
    assert found(rows(0, 2, 3, 5)) == (1, 0, 0, 0)
    assert found(rows(0, 2, 3, 5, 5)) == (1, 1, 0, 0)
    assert found(rows(0, 2, 3, 5, 7, 1)) == (0, 0, 1, 0)
    assert found(rows()) == (5, 0, 0, 0)


@pytest.mark.parametrize("part", range(4))
def test_one_bit_is_enough(part):
    """Of ids, hidden states and scales; a weight's tells another token, or none."""
    arrived = rows(0, 2, 3, 5, 7)
    arrived[part].view(torch.uint8)[1, -1] ^= 0x40
    assert examine(arrived, IDS, NEEDED).wrong >= 1


def test_a_row_put_together_from_two_is_spoilt():
    one, other = rows(0, 2, 3, 5, 7), rows(2, 0, 3, 5, 7)
    assert found((*one[:2], other[2], one[3])) == (0, 0, 0, 2)


def test_weights_that_are_no_tokens_are_spoilt():
    arrived = rows(0, 2, 3, 5, 7)
    arrived[1][0] = float("nan")
    assert found(arrived) == (1, 0, 0, 1)


def test_tokens_differ_in_every_part():
    for part in rows(*range(8))[1:]:
        assert len({bytes(row.view(torch.uint8).tolist()) for row in part}) == 8


def test_the_text_says_it_all():
    text = examine(rows(0, 2, 3, 5, 5), IDS, NEEDED).text
    assert text == "of 5 rows 1 are missing, 1 came twice, 0 do not belong here, 0 have other contents"
