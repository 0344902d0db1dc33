"""NVFP4 weights to 16 bits, exactly: an element times its block's scale has six significant bits.

An element's three bits of exponent and mantissa, put where bf16 has its own, are the element times a power of two, and
zero and the subnormal 0.5 are no exceptions. What is missing of that power goes into the block's scale, as far as the
format reaches, and the rest, ``REMAINDER``, into what the products are scaled by. Words are those of ``fp4_words``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.fp4_words import LAST_FACTOR, LAST_MASK, PLACES, ROTATIONS

REMAINDER = tl.constexpr(128.0)
"""What products of decoded weights must be multiplied by."""
_PLACES, _LAST_MASK, _LAST_FACTOR = tl.constexpr(PLACES), tl.constexpr(LAST_MASK), tl.constexpr(LAST_FACTOR)
_FIRST_ROTATION, _SECOND_ROTATION = tl.constexpr(ROTATIONS[0]), tl.constexpr(ROTATIONS[1])
BF16_SCALE, FP16_SCALE = tl.constexpr(0x00100010), tl.constexpr(0x00800080)
"""What a scale's byte is multiplied by, to be twice the scale in the format, times 2^119 or 2^7: in bf16 with …"""
BF16_EXPONENT = tl.constexpr(0x70007000)
"""… the upper bits of its exponent."""

_IN_FP16 = """
    shl.b32 q, p, 3;
    and.b32 q, q, 0x0E000E00;
    lop3.b32 p, p, 0x80008000, q, 0xEA;"""
"""From bf16's place to fp16's, where it is another power of two; the sign stays."""


def _asm(dtype: str, placed: str) -> str:
    """Four bytes to their even and their odd elements, two at once, times a scale for every two bytes.

    Negative zero is added, since there is no plain product of pairs before Hopper: zeros keep their signs.
    """
    mask = f"\n    and.b32 p, p, 0x{PLACES:08X};"
    words = [
        "\n    mov.b32 p, $4;" + mask,
        *(f"\n    shf.r.wrap.b32 p, $4, $4, {rotation};{mask}" for rotation in ROTATIONS),
        f"\n    and.b32 p, $4, 0x{LAST_MASK:08X};\n    mul.lo.u32 p, p, 0x{LAST_FACTOR:X};" + mask,
    ]
    parts = [f"{word}{placed}\n    fma.rn.{dtype} ${at}, p, ${5 + at % 2 * 2}, z;" for at, word in enumerate(words)]
    return "{\n    .reg .b32 p, q, z;\n    mov.b32 z, 0x80008000;" + "".join(parts) + "\n    }"


NATIVE_BF16, NATIVE_FP16 = tl.constexpr(_asm("bf16x2", "")), tl.constexpr(_asm("f16x2", _IN_FP16))
OPERANDS = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r,r,r")
"""Results are written while there is still something to read."""


@triton.jit
def _both(pair, scale, half, DTYPE: tl.constexpr):
    """One of a pair's two elements, in bf16's place in int64, scaled in fp32, which has bf16's range."""
    bits = ((pair >> 16 * half & 0xFFFF) << 16).to(tl.int32)
    return (bits.to(tl.float32, bitcast=True) * scale).to(DTYPE)


@triton.jit
def _in_fp32(packed, scale, DTYPE: tl.constexpr):
    """``decode`` of any processor."""
    ROWS: tl.constexpr = packed.shape[0]
    WORDS: tl.constexpr = packed.shape[1] // 4
    byte = tl.arange(0, 4)[None, None, :]
    word = tl.sum(packed.reshape(ROWS, WORDS, 4).to(tl.int64) << 8 * byte, axis=2)[:, :, None]
    twice = word | word << 32
    first, second = word & _PLACES, twice >> _FIRST_ROTATION & _PLACES
    third, fourth = twice >> _SECOND_ROTATION & _PLACES, (word & _LAST_MASK) * _LAST_FACTOR & _PLACES
    value = (((scale << 4) + 0x7000) << 16).to(tl.float32, bitcast=True).reshape(ROWS, WORDS, 4)
    lower = byte < 2
    even = _both(tl.where(lower, first, second), value, byte % 2, DTYPE)
    odd = _both(tl.where(lower, third, fourth), value, byte % 2, DTYPE)
    return even.reshape(ROWS, 4 * WORDS), odd.reshape(ROWS, 4 * WORDS)


@triton.jit
def _spread(scale, BYTES: tl.constexpr):
    """A scale for every byte: two, of rows, for every 16 bytes, of which each has two next to each other."""
    ROWS: tl.constexpr = scale.shape[0]
    pairs = scale.reshape(ROWS, BYTES // 16, 1, 2, 1)
    return tl.broadcast_to(pairs, ROWS, BYTES // 16, 4, 2, 2).reshape(ROWS, BYTES)


@triton.jit
def decode(packed, scale, HALF: tl.constexpr, HARDWARE: tl.constexpr):
    """(blocks, n) bytes with (blocks, n / 8) scales: their even and odd elements, (blocks, n) each, over ``REMAINDER``.

    Args:
        packed: uint8, as ``fp4_words`` and ``fp4_order`` say.
        scale: uint8, likewise.
        HARDWARE: by PTX, two elements at once; otherwise in fp32, which has the range of bf16.
    """
    BYTES: tl.constexpr = packed.shape[1]
    if not HARDWARE:
        spread = _spread(scale.to(tl.int32), BYTES)
        even, odd = _in_fp32(packed, spread, tl.float16 if HALF else tl.bfloat16)
    elif HALF:
        spread = _spread(scale.to(tl.int32) * FP16_SCALE, BYTES)
        even, odd = tl.inline_asm_elementwise(
            NATIVE_FP16, OPERANDS, [packed, spread], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        spread = _spread(scale.to(tl.int32) * BF16_SCALE + BF16_EXPONENT, BYTES)
        even, odd = tl.inline_asm_elementwise(
            NATIVE_BF16, OPERANDS, [packed, spread], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    return even, odd
