"""How the bits of eight NVFP4 weights lie in a word, so that two of them are decoded by two instructions or three.

bf16 has its sign at bit 15 of 16, and an element's exponent and mantissa belong at bits 8 to 6. Those places of the
word as it is have a pair, one in each half; another has those places after a rotation by 3, and a third after one by 6:
none of these bits meet. No third rotation leaves what remains in place, but a product does: four bits of each half are
put where they belong by a factor of three powers of two, whose copies meet nowhere.

A pair is of the even elements of bytes 0 and 1, the even ones of bytes 2 and 3, the odd ones of bytes 0 and 1, or the
odd ones of bytes 2 and 3, in this order.

A block's scale, which E4M3 has with three bits of mantissa, keeps five bits of exponent, the same distance from each
in bf16 and fp16: a shift converts it. Zero has no such exponent: its block's elements are made zeros instead.
"""

from __future__ import annotations

import functools
import math

import torch

PLACES = 0x81C081C0
"""Of bf16's sign, two bits of exponent and one of mantissa, in both halves."""
ROTATIONS = (3, 6)
"""To the right."""
LAST_MASK, LAST_FACTOR = 0x001B001B, 0x1084
SCALE_BIAS = 22
"""Of a scale's exponent: bf16's bias and 119, less 224, which its upper bits have; fp16's bias and 7."""
SMALLEST_SCALE = -9
"""Exponent of E4M3's least."""

_BITS = (15, 8, 7, 6)
_LAST_BITS = (3, 1, 0, 4)
"""Where sign, exponent and mantissa of the last pair wait."""


def place(pair: int, half: int, bit: int) -> int:
    """The bit of a word that has the sign (0), exponent (1, 2) or mantissa (3) of an element of a pair."""
    if pair == 3:
        return 16 * half + _LAST_BITS[bit]
    return (16 * half + _BITS[bit] + (0, *ROTATIONS)[pair]) % 32


def _element(code: int, pair: int, half: int) -> int:
    return sum((code >> 3 - bit & 1) << place(pair, half, bit) for bit in range(4))


@functools.cache
def _byte_table() -> torch.Tensor:
    """(4, 256) int32: what a byte, by where it is among four, adds to its word.

    Made once, on the CPU: it takes milliseconds, and is asked for at every expert's matrix.
    """
    return torch.tensor(
        [
            [_element(byte & 0xF, at // 2, at % 2) | _element(byte >> 4, 2 + at // 2, at % 2) for byte in range(256)]
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


def words_of(packed: torch.Tensor) -> torch.Tensor:
    """(…, 4 n) bytes of two codes to as many, each four the bytes of a word."""
    table = _byte_table().to(packed.device)
    at = packed.unflatten(-1, (-1, 4)).int()
    word = table[0][at[..., 0]]
    for byte in range(1, 4):
        word |= table[byte][at[..., byte]]
    return word.view(torch.uint8)


def scales_of(scale: torch.Tensor) -> torch.Tensor:
    """E4M3 bytes to those of scales, whose sign is left out."""
    return _scale_table().to(scale.device)[scale.int()]
