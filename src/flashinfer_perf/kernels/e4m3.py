"""E4M3 in fp32 arithmetic: four elements to a 32-bit word, and block scales. Bit for bit what ``formats`` gives."""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
SHRINK = tl.constexpr(2.0**-120)
NATIVE = tl.constexpr(
    """{
    .reg .b16 low, high;
    cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
    cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
    mov.b32 $0, {low, high};
    }"""
)
"""Four fp32 to four bytes, on compute capability 8.9 and later."""


@triton.jit
def _code(value):
    """uint32 codes of fp32 that is within ±448 and has at most 16 significant bits.

    Times 2^-120, E4M3's subnormals are fp32's, and so both formats have their exponents in the same place. Then it is
    a matter of rounding 20 bits off. What fp32 loses of its own subnormals is less than half of E4M3's smallest number,
    and decides nothing.
    """
    bits = (value * SHRINK).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    return ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) | ((bits >> 24) & 0x80)


@triton.jit
def pack_four(v0, v1, v2, v3, HARDWARE: tl.constexpr):
    """uint32 words of four fp32 tensors of one shape, the first in the lowest byte.

    To nearest even; NaN becomes +448. Values are at most 448, with 16 significant bits at most, as those of 16-bit
    floats times a power of two are; infinities may not come, except by NaN.

    Args:
        HARDWARE: by the conversion that compute capability 8.9 has; otherwise in integer arithmetic.
    """
    v0, v1 = tl.minimum(v0, LARGEST), tl.minimum(v1, LARGEST)  # and NaN is 448: a minimum takes the number
    v2, v3 = tl.minimum(v2, LARGEST), tl.minimum(v3, LARGEST)
    if HARDWARE:
        return tl.inline_asm_elementwise(NATIVE, "=r,f,f,f,f", [v0, v1, v2, v3], dtype=tl.uint32, is_pure=True, pack=1)
    return _code(v0) | (_code(v1) << 8) | (_code(v2) << 16) | (_code(v3) << 24)


@triton.jit
def round_scale(value):
    """Nearest E4M3 number of non-negative fp32, saturating: (its uint32 code, its value).

    A power of two 2^20 times larger is added, or 2^20 times the smallest normal number: next to it fp32 has E4M3's
    step, so that one addition rounds, and once only, subnormals too.
    """
    value = tl.minimum(value, LARGEST)
    power = tl.maximum(value.to(tl.int32, bitcast=True) & 0x7F800000, 0x3C800000) + (20 << 23)
    large = power.to(tl.float32, bitcast=True)
    rounded = value + large
    steps = rounded.to(tl.int32, bitcast=True) - power
    return (steps + (power >> 20) - 1128).to(tl.uint32), rounded - large
