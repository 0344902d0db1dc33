"""Words of eight weights: every bit has one place, and no instruction that decodes them takes one for another."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch

from flashinfer_perf.kernels.moe import fp4_words
from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, Packing, Product, scales_of, words_of

BITS = [(pair, half, bit) for pair in range(4) for half in range(2) for bit in range(4)]
OTHERS = 256
"""Of a word's bits that are not a pair's: so many random ones, all zeros and all ones."""
EXPONENT_MANTISSA = {torch.bfloat16: (8, 7), torch.float16: (5, 10)}
"""Bits of each."""
each_packing = pytest.mark.parametrize("packing", PACKINGS.values(), ids=map(str, PACKINGS))


@each_packing
def test_each_bit_has_a_place_of_its_own(packing):
    assert sorted(packing.place(*bit) for bit in BITS) == list(range(32))


@pytest.mark.parametrize("dtype", PACKINGS)
def test_the_first_pair_is_where_the_format_has_its_bits(dtype):
    """An element in place is a power of two times what it is; of both formats, as ``REMAINDER`` wants."""
    exponent, mantissa = EXPONENT_MANTISSA[dtype]
    assert PACKINGS[dtype].bits == (15, mantissa + 1, mantissa, mantissa - 1)
    words = torch.zeros(16, 4, dtype=torch.uint8)
    words[:, 0] = torch.arange(16)
    placed = words_of(words, PACKINGS[dtype]).view(torch.int16)[:, 0].view(dtype).double()
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.double)
    assert torch.equal(placed * 2.0 ** (2 ** (exponent - 1) - 2), torch.cat((values, -values)))


def misplaced(packing: Packing, pair: int) -> int:
    """How many words' pairs do not come to their places: of all their values, and random other bits."""
    codes = torch.arange(256)
    own = {(half, bit): packing.place(pair, half, bit) for half in range(2) for bit in range(4)}
    bit_of = lambda half, bit: codes >> 4 * half + 3 - bit & 1  # noqa: E731
    elements = sum(bit_of(*which) << at for which, at in own.items())
    truth = sum(bit_of(half, bit) << packing.place(0, half, bit) for half, bit in own)
    others = torch.randint(0, 2**32, (OTHERS,), generator=torch.Generator().manual_seed(pair))
    others = torch.cat((others, torch.tensor([0, 2**32 - 1]))) & ~sum(1 << at for at in own.values())
    word = elements[:, None] | others
    way = packing.ways[pair]
    placed = ((word | word << 32) >> way.rotation & way.mask) * way.factor & packing.places
    return int((placed != truth[:, None]).sum())


@each_packing
@pytest.mark.parametrize("pair", range(4))
def test_every_pair_comes_to_its_places_whatever_the_other_bits_are(packing, pair):
    assert misplaced(packing, pair) == 0


@pytest.mark.parametrize(("pair", "wrong"), [(2, Product((1, 8, 7, 6), 0x4018)), (3, Product((0, 5, 4, 3), 0x8048))])
def test_a_factor_whose_copies_meet_at_places_is_found(pair, wrong):
    packing = PACKINGS[torch.float16]
    products = [*packing.products]
    products[pair - 2] = wrong
    assert misplaced(replace(packing, products=tuple(products)), pair) > 0


def test_a_rotation_to_bits_of_another_pair_is_found():
    wrong = replace(PACKINGS[torch.bfloat16], rotations=(3, 7))
    assert len({wrong.place(*bit) for bit in BITS}) < 32


@each_packing
def test_distinct_bytes_are_distinct_words(packing):
    random = torch.randint(0, 256, (4096, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(words_of(random.unique(dim=0), packing).unique(dim=0)) == len(random.unique(dim=0))


@pytest.mark.parametrize("byte", [0x00, 0x80])
def test_no_scale_is_the_smallest_one(byte):
    assert scales_of(torch.tensor([byte], dtype=torch.uint8)) == scales_of(torch.tensor([0x01], dtype=torch.uint8))


def test_what_is_no_number_stays_so():
    assert scales_of(torch.tensor([0x7F], dtype=torch.uint8)) == 0xFF, "an exponent of ones"


@each_packing
def test_tables_are_made_once(packing):
    """A mixture of experts asks for them hundreds of times, and each takes a millisecond or more."""
    packed = torch.arange(256).to(torch.uint8)
    words, scales = words_of(packed, packing), scales_of(packed)
    with mock.patch.object(fp4_words, "_element"), mock.patch.object(fp4_words, "_scale"):
        assert torch.equal(words_of(packed, packing), words)
        assert torch.equal(scales_of(packed), scales)
