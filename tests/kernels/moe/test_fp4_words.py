"""Words of eight weights: every bit has one place, and no instruction that decodes them takes one for another."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from flashinfer_perf.kernels.moe import fp4_words
from flashinfer_perf.kernels.moe.fp4_words import LAST_FACTOR, LAST_MASK, PLACES, place, scales_of, words_of

BITS = [(pair, half, bit) for pair in range(4) for half in range(2) for bit in range(4)]


def test_each_bit_has_a_place_of_its_own():
    assert sorted(place(*bit) for bit in BITS) == list(range(32))


def test_the_factor_puts_the_last_pair_where_the_others_are():
    last = {bit: place(*bit) for bit in BITS if bit[0] == 3}
    assert sum(1 << at for at in last.values()) == LAST_MASK
    for (_, half, bit), at in last.items():
        assert (LAST_FACTOR << at) & PLACES == 1 << place(0, half, bit)


def test_distinct_bytes_are_distinct_words():
    random = torch.randint(0, 256, (4096, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(words_of(random.unique(dim=0)).unique(dim=0)) == len(random.unique(dim=0))


@pytest.mark.parametrize("byte", [0x00, 0x80])
def test_no_scale_is_the_smallest_one(byte):
    assert scales_of(torch.tensor([byte], dtype=torch.uint8)) == scales_of(torch.tensor([0x01], dtype=torch.uint8))


def test_what_is_no_number_stays_so():
    assert scales_of(torch.tensor([0x7F], dtype=torch.uint8)) == 0xFF, "an exponent of ones"


def test_tables_are_made_once():
    """A mixture of experts asks for them hundreds of times, and each takes a millisecond or more."""
    packed = torch.arange(256).to(torch.uint8)
    words, scales = words_of(packed), scales_of(packed)
    with mock.patch.object(fp4_words, "_element"), mock.patch.object(fp4_words, "_scale"):
        assert torch.equal(words_of(packed), words)
        assert torch.equal(scales_of(packed), scales)
