"""How the bits of eight NVFP4 weights lie in a word, so that two of them are decoded by two to four instructions.

A 16-bit format has its sign at bit 15, and an element's exponent and mantissa belong where the format has the lowest of
its exponent and the highest of its mantissa. Those places of the word as it is have a pair, one in each half; after a
rotation they have another, as long as none of these bits meet. What remains gets there by a product: four bits of each
half are put where they belong by a factor of a few powers of two, whose copies, with all carries, spare the places.

A pair is of the even elements of bytes 0 and 1, the even ones of bytes 2 and 3, the odd ones of bytes 0 and 1, or the
odd ones of bytes 2 and 3, in this order.

A block's scale, which E4M3 has with three bits of mantissa, keeps five bits of exponent, the same distance from each
in bf16 and fp16: a shift converts it. Zero has no such exponent: its block's elements are made zeros instead.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

SCALE_BIAS = 22
"""Of a scale's exponent: bf16's bias and 119, less 224, which its upper bits have; fp16's bias and 7."""
SMALLEST_SCALE = -9
"""Exponent of E4M3's least."""


class Product(NamedTuple):
    """Takes a pair's bits from where they wait in each half, sign, exponent and mantissa, to their places."""

    bits: tuple[int, int, int, int]
    factor: int


class Way(NamedTuple):
    """Of a pair to its places: what a mask leaves of the rotated word times a factor, where there are places."""

    rotation: int
    mask: int
    factor: int


@dataclass(frozen=True)
class Packing:
    """Words for activations of one dtype: the first pair is in place, and others come there by rotations and products.

    Attributes:
        ptx: what PTX calls two numbers of the dtype.
        bits: places of sign, exponent (two) and mantissa in either half.
        rotations: to the right.
        scale_shift, scale_exponent: of a scale's byte, to the left, and what is added to it then.
    """

    ptx: str
    bits: tuple[int, int, int, int]
    rotations: tuple[int, ...]
    products: tuple[Product, ...]
    scale_shift: int
    scale_exponent: int

    @property
    def places(self) -> int:
        """A mask of both halves."""
        return _mask(self.bits)

    @property
    def ways(self) -> tuple[Way, ...]:
        """Of each pair."""
        turned = (Way(rotation, self.places, 1) for rotation in (0, *self.rotations))
        return *turned, *(Way(0, _mask(product.bits), product.factor) for product in self.products)

    def place(self, pair: int, half: int, bit: int) -> int:
        """The bit of a word that has the sign (0), exponent (1, 2) or mantissa (3) of an element of a pair."""
        turned = (0, *self.rotations)
        if pair < len(turned):
            return (16 * half + self.bits[bit] + turned[pair]) % 32
        return 16 * half + self.products[pair - len(turned)].bits[bit]


def _mask(bits: tuple[int, ...]) -> int:
    return sum(0x00010001 << bit for bit in bits)


PACKINGS = {
    torch.bfloat16: Packing("bf16x2", (15, 8, 7, 6), (3, 6), (Product((3, 1, 0, 4), 0x1084),), 4, 0x7000),
    # After a second rotation, bits of three pairs would meet here
    torch.float16: Packing(
        "f16x2", (15, 11, 10, 9), (3,), (Product((1, 8, 7, 6), 0x4008), Product((0, 5, 4, 3), 0x8040)), 7, 0
    ),
}


def _element(packing: Packing, code: int, pair: int, half: int) -> int:
    return sum((code >> 3 - bit & 1) << packing.place(pair, half, bit) for bit in range(4))


@functools.cache
def _byte_table(packing: Packing) -> torch.Tensor:
    """(4, 256) int32: what a byte, by where it is among four, adds to its word.

    Made once, on the CPU: it takes milliseconds, and is asked for at every expert's matrix.
    """
    return torch.tensor(
        [
            [
                _element(packing, byte & 0xF, at // 2, at % 2) | _element(packing, byte >> 4, 2 + at // 2, at % 2)
                for byte in range(256)
            ]
            for at in range(4)
        ]
    ).to(torch.int32)


def _scale(byte: int) -> int:
    """A scale's byte of an E4M3 one."""
    value = torch.tensor(byte, dtype=torch.uint8).view(torch.float8_e4m3fn).item()
    if math.isnan(value):
        return 0xFF
    if value == 0:
        return (SMALLEST_SCALE + SCALE_BIAS) << 3
    mantissa, exponent = math.frexp(abs(value))
    return (exponent - 1 + SCALE_BIAS) << 3 | int(mantissa * 16) - 8


@functools.cache
def _scale_table() -> torch.Tensor:
    """(256,) bytes: a scale's for each of E4M3. Likewise."""
    return torch.tensor([_scale(byte) for byte in range(256)], dtype=torch.uint8)


def words_of(packed: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(…, 4 n) bytes of two codes to as many, each four the bytes of a word."""
    table = _byte_table(packing).to(packed.device)
    at = packed.unflatten(-1, (-1, 4)).int()
    word = table[0][at[..., 0]]
    for byte in range(1, 4):
        word |= table[byte][at[..., byte]]
    return word.view(torch.uint8)


def scales_of(scale: torch.Tensor) -> torch.Tensor:
    """E4M3 bytes to those of scales, whose sign is left out."""
    return _scale_table().to(scale.device)[scale.int()]
