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
    """A word to its four pairs of elements, times a scale of the first and the third and one of the others.

    Negative zero is added, since there is no plain product of pairs before Hopper: zeros keep their signs.
    """
    mask = f"\n    and.b32 p, p, 0x{PLACES:08X};"
    words = [
        "\n    mov.b32 p, $8;" + mask,
        *(f"\n    shf.r.wrap.b32 p, $8, $8, {rotation};{mask}" for rotation in ROTATIONS),
        f"\n    and.b32 p, $8, 0x{LAST_MASK:08X};\n    mul.lo.u32 p, p, 0x{LAST_FACTOR:X};" + mask,
    ]
    parts = [
        f"{word}{placed}\n    fma.rn.{dtype} p, p, ${9 + at % 2}, z;\n    mov.b32 {{${2 * at}, ${2 * at + 1}}}, p;"
        for at, word in enumerate(words)
    ]
    return "{\n    .reg .b32 p, q, z;\n    mov.b32 z, 0x80008000;" + "".join(parts) + "\n    }"


NATIVE_BF16, NATIVE_FP16 = tl.constexpr(_asm("bf16x2", "")), tl.constexpr(_asm("f16x2", _IN_FP16))
OPERANDS = tl.constexpr(",".join(["=&h"] * 8 + ["r"] * 3))
"""Results are written while there is still something to read."""


@triton.jit
def _of_bf16(pair, scale, DTYPE: tl.constexpr):
    """A pair's two elements, in bf16's place in int64, scaled in fp32, which has bf16's range."""
    factor = (((scale << 4) + 0x7000) << 16).to(tl.float32, bitcast=True)
    low = ((pair & 0xFFFF) << 16).to(tl.int32).to(tl.float32, bitcast=True)
    high = (pair & 0xFFFF0000).to(tl.int32).to(tl.float32, bitcast=True)
    return (low * factor).to(DTYPE), (high * factor).to(DTYPE)


@triton.jit
def _in_fp32(packed, upper, lower, DTYPE: tl.constexpr):
    """``decode`` of any processor."""
    word = packed.to(tl.int64) & 0xFFFFFFFF
    twice = word | word << 32
    a, b = _of_bf16(word & _PLACES, upper, DTYPE)
    c, d = _of_bf16(twice >> _FIRST_ROTATION & _PLACES, lower, DTYPE)
    e, f = _of_bf16(twice >> _SECOND_ROTATION & _PLACES, upper, DTYPE)
    g, h = _of_bf16((word & _LAST_MASK) * _LAST_FACTOR & _PLACES, lower, DTYPE)
    return a, b, c, d, e, f, g, h


@triton.jit
def _spread(scale, WORDS: tl.constexpr):
    """A scale for each of four words."""
    BLOCKS: tl.constexpr = scale.shape[0]
    return tl.broadcast_to(scale[:, :, None], BLOCKS, WORDS // 4, 4).reshape(BLOCKS, WORDS)


@triton.jit
def decode(packed, scales, HALF: tl.constexpr, HARDWARE: tl.constexpr):
    """(blocks, n) words with (blocks, n / 4) pairs of scales: their elements over ``REMAINDER``, (blocks, n, 2, 2, 2).

    The last axes are the byte in a row, the row, and odd after even.

    Args:
        packed: int32, as ``fp4_words`` and ``fp4_order`` say.
        scales: uint16, of two rows, likewise.
        HARDWARE: by PTX, two elements at once; otherwise in fp32, which has the range of bf16.
    """
    WORDS: tl.constexpr = packed.shape[1]
    upper, lower = scales.to(tl.int32) & 0xFF, scales.to(tl.int32) >> 8
    if not HARDWARE:
        upper, lower = _spread(upper, WORDS), _spread(lower, WORDS)
        a, b, c, d, e, f, g, h = _in_fp32(packed, upper, lower, tl.float16 if HALF else tl.bfloat16)
    elif HALF:
        upper, lower = _spread(upper * FP16_SCALE, WORDS), _spread(lower * FP16_SCALE, WORDS)
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            NATIVE_FP16, OPERANDS, [packed, upper, lower], dtype=(tl.float16,) * 8, is_pure=True, pack=1
        )
    else:
        upper = _spread(upper * BF16_SCALE + BF16_EXPONENT, WORDS)
        lower = _spread(lower * BF16_SCALE + BF16_EXPONENT, WORDS)
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            NATIVE_BF16, OPERANDS, [packed, upper, lower], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=1
        )
    even = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.join(even, tl.join(tl.join(e, f), tl.join(g, h)))
