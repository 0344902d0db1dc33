"""E8M0 scales of blocks in integer arithmetic. Bit for bit what ``formats.mxfp8`` and ``formats.mxfp4`` give."""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def scale_up(largest, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """The smallest power of two that brings a block's largest magnitude to the format's: (its uint32 byte, 1 / it).

    Byte 0, and a reciprocal of zero, where that power is below 2^-126; byte 254, and zero again, for infinity.

    Args:
        largest: fp32, neither negative nor NaN, of a block of 16-bit floats.
        EXPONENT, MANTISSA: the format's largest magnitude is (1 + MANTISSA / 2^23) * 2^EXPONENT.
    """
    bits = largest.to(tl.uint32, bitcast=True)
    byte = ((bits + (0x7FFFFF - MANTISSA)) >> 23) - EXPONENT
    byte = tl.where(bits < ((EXPONENT + 1) << 23 | MANTISSA), 0, byte)
    byte = tl.where(bits == INFINITY, 254, byte)
    power = tl.where(byte == 0, 0, (254 - byte) << 23)
    return byte, power.to(tl.float32, bitcast=True)
