"""E2M1 in fp32 arithmetic: eight elements to a 32-bit word. Bit for bit what ``formats.e2m1`` gives."""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(8388608.0)
"""2^23: between it and its double, fp32 has a step of 1. What is added to it is rounded to an integer, ties to even."""
LEFTOVER = tl.constexpr(0xFB000000)
"""What the exponents of the last two ``ONE`` leave in a word; those of the others have been shifted out."""


@triton.jit
def _push(word, value, factor):
    """Shifts the code of value * factor into a word from below.

    Codes count magnitudes, so the code of a magnitude y, before it is rounded, is the least of 2y, y + 2 and y / 2 + 4:
    steps of 1/2 up to 2, of 1 up to 4, of 2 beyond. Each is rounded by the one addition that makes it. A minimum takes
    the number rather than NaN, and a product that is NaN is a positive one on NVIDIA GPUs: both make +6 of it.
    """
    size = tl.abs(value) * factor
    code = tl.minimum(tl.fma(size, 2.0, ONE), size + (ONE + 2.0))
    code = tl.minimum(tl.minimum(code, tl.fma(size, 0.5, ONE + 4.0)), ONE + 7.0)
    word = (word << 1) | ((value * factor).to(tl.uint32, bitcast=True) >> 31)
    return word * 8 + code.to(tl.uint32, bitcast=True)


@triton.jit
def pack_eight(v0, v1, v2, v3, v4, v5, v6, v7, factor):
    """uint32 words of eight fp32 tensors of one shape times another, the first in the lowest four bits.

    To nearest, ties to the even code, saturating; the sign of zero is kept, and NaN becomes +6. Factors are not
    negative.
    """
    word = _push(tl.zeros_like(v7).to(tl.uint32), v7, factor)
    word = _push(word, v6, factor)
    word = _push(word, v5, factor)
    word = _push(word, v4, factor)
    word = _push(word, v3, factor)
    word = _push(word, v2, factor)
    word = _push(word, v1, factor)
    return _push(word, v0, factor) - LEFTOVER
