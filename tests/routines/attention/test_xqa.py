"""XQA's mask bits, and its limits where they hold."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines.attention import xqa
from flashinfer_perf.routines.attention.flags import AttentionFlags


def rows_of(queries, batch=1):
    mask = xqa.causal_bits(batch, queries, torch.device("cpu"))
    assert (mask.dtype, mask.is_contiguous()) == (torch.uint16, True)
    return mask.to(torch.int64).tolist()


def test_a_query_sees_itself_and_those_before_it():
    """Bits from the lowest on; a row is padded to 32 bits, which is two words."""
    assert rows_of(1) == [[[1, 0]]]
    assert rows_of(3) == [[[0b1, 0], [0b11, 0], [0b111, 0]]]


def test_bits_go_on_in_the_next_word():
    (rows,) = rows_of(18)
    assert rows[15:] == [[0xFFFF, 0], [0xFFFF, 0b1], [0xFFFF, 0b11]]


@pytest.mark.parametrize(("queries", "words"), [(1, 2), (31, 2), (32, 2), (33, 4), (64, 4), (65, 6)])
def test_rows_are_padded_to_32_bits(queries, words):
    (rows,) = rows_of(queries)
    assert [len(row) for row in rows] == [words] * queries
    numbers = [sum(word << 16 * place for place, word in enumerate(row)) for row in rows]
    assert numbers == [(1 << query + 1) - 1 for query in range(queries)]


def test_all_sequences_have_the_same():
    rows = rows_of(5, batch=3)
    assert rows == [rows[0]] * 3
    assert rows[0] == rows_of(5)[0]


# ---- Limits ----


def case(**changes):
    shape = {"num_qo_heads": 8, "num_kv_heads": 1, "head_dim_qk": 128, "page_size": 16}
    return AttentionFlags(batch_size=1, s_kv=64, **{**shape, **changes})


def refused(found, **changes):
    machine = Machine("cuda:0", "", found)
    return any(limit.unmet(machine, case(**changes)) for limit in xqa.limits)


LIMITS = [
    {"page_size": 8},
    {"head_dim_qk": 512},
    {"q_dtype": DType.FP8_E4M3, "kv_dtype": DType.FP8_E4M3},
    {"num_qo_heads": 65},
]


@pytest.mark.parametrize("changes", LIMITS)
def test_limits_hold_where_the_library_runs_xqa(changes):
    assert refused((9, 0), **changes)
    assert refused((12, 0), **changes)
    assert not refused((10, 0), **changes)
    assert not refused((9, 0))


@pytest.mark.parametrize(
    ("dim", "most"),
    [(64, 128), (128, 64), (256, 32)],
)
def test_the_heads_of_a_group_fill_16_kib(dim, most):
    """Of 2 bytes an element, in multiples of 16 rows; of several queries, 32 rows are worked on at a time."""
    assert not refused((9, 0), head_dim_qk=dim, num_qo_heads=most)
    assert refused((9, 0), head_dim_qk=dim, num_qo_heads=most + 1)
    assert not refused((9, 0), head_dim_qk=dim, num_qo_heads=most + 1, s_qo=2)
