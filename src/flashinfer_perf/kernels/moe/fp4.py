"""NVFP4 weights to 16 bits, exactly: an element times its block's scale has six significant bits.

An element's three bits of exponent and mantissa, put where a 16-bit format has its own, are the element times a power
of two, and zero and the subnormal 0.5 are no exceptions. What is missing of that power goes into the block's scale, as
far as the format reaches, and the rest, ``REMAINDER``, into what the products are scaled by. Words are those of
``fp4_words`` for the format.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, Packing, Way

REMAINDER = tl.constexpr(128.0)
"""What products of decoded weights must be multiplied by, in either format: of 2^-126 and 2^119 there is 2^-7 left, and
of 2^-14 and 2^7 as well."""


def _moved(way: Way) -> str:
    """A pair to its places, among other bits."""
    if way.factor == 1:
        return f"shf.r.wrap.b32 p, $8, $8, {way.rotation};" if way.rotation else "mov.b32 p, $8;"
    return f"and.b32 p, $8, 0x{way.mask:08X};\n    mul.lo.u32 p, p, 0x{way.factor:X};"


def _asm(packing: Packing) -> str:
    """A word to its four pairs of elements, times a scale of the first and the third and one of the others.

    Negative zero is added, since there is no plain product of pairs before Hopper: zeros keep their signs.
    """
    parts = [
        f"""
    {_moved(way)}
    and.b32 p, p, 0x{packing.places:08X};
    fma.rn.{packing.ptx} p, p, ${9 + at % 2}, z;
    mov.b32 {{${2 * at}, ${2 * at + 1}}}, p;"""
        for at, way in enumerate(packing.ways)
    ]
    return "{\n    .reg .b32 p, z;\n    mov.b32 z, 0x80008000;" + "".join(parts) + "\n    }"


def _constants(packing: Packing, dtype: tl.dtype) -> tuple[object, ...]:
    """What kernels know of a packing: PTX, places, ways, a factor and a summand that make two of a scale's byte, and
    the eight results' dtypes.
    """
    ways = tuple(tuple(way) for way in packing.ways)
    scale = 0x00010001 << packing.scale_shift, 0x00010001 * packing.scale_exponent
    return _asm(packing), packing.places, ways, *scale, (dtype,) * 8


OF_BF16 = tl.constexpr(_constants(PACKINGS[torch.bfloat16], tl.bfloat16))
OF_FP16 = tl.constexpr(_constants(PACKINGS[torch.float16], tl.float16))
OPERANDS = tl.constexpr(",".join(["=&h"] * 8 + ["r"] * 3))
"""Results are written while there is still something to read."""


@triton.jit
def _value(bits, DTYPE: tl.constexpr):
    """The 16-bit number of the lower bits, in fp32."""
    return (bits & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _pair(word, scale, AT: tl.constexpr, PACKING: tl.constexpr, DTYPE: tl.constexpr):
    """A pair's two elements, of a word in int64, times a scale: in fp32, which has either format's range."""
    turned = (word | word << 32) >> PACKING[2][AT][0]
    placed = (turned & PACKING[2][AT][1]) * PACKING[2][AT][2] & PACKING[1]
    factor = _value(scale, DTYPE)
    return (_value(placed, DTYPE) * factor).to(DTYPE), (_value(placed >> 16, DTYPE) * factor).to(DTYPE)


@triton.jit
def _in_fp32(packed, upper, lower, PACKING: tl.constexpr, DTYPE: tl.constexpr):
    """``decode`` of any processor."""
    word = packed.to(tl.int64) & 0xFFFFFFFF
    a, b = _pair(word, upper, 0, PACKING, DTYPE)
    c, d = _pair(word, lower, 1, PACKING, DTYPE)
    e, f = _pair(word, upper, 2, PACKING, DTYPE)
    g, h = _pair(word, lower, 3, PACKING, DTYPE)
    return a, b, c, d, e, f, g, h


@triton.jit
def _spread(scale, WORDS: tl.constexpr):
    """A scale for each of four words."""
    BLOCKS: tl.constexpr = scale.shape[0]
    return tl.broadcast_to(scale[:, :, None], BLOCKS, WORDS // 4, 4).reshape(BLOCKS, WORDS)


@triton.jit
def decode(packed, scales, DTYPE: tl.constexpr, HARDWARE: tl.constexpr):
    """(blocks, n) words with (blocks, n / 4) pairs of scales: their elements over ``REMAINDER``, (blocks, n, 2, 2, 2).

    The last axes are the byte in a row, the row, and odd after even.

    Args:
        packed: int32, as ``fp4_words``, for DTYPE, and ``fp4_order`` say.
        scales: uint16, of two rows, likewise.
        DTYPE: bfloat16 or float16, of the result.
        HARDWARE: by PTX, two elements at once; otherwise in fp32.
    """
    PACKING: tl.constexpr = OF_FP16 if tl.float16 == DTYPE else OF_BF16
    WORDS: tl.constexpr = packed.shape[1]
    both = scales.to(tl.int32)
    upper = _spread((both & 0xFF) * PACKING[3] + PACKING[4], WORDS)
    lower = _spread((both >> 8) * PACKING[3] + PACKING[4], WORDS)
    if HARDWARE:
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            PACKING[0], OPERANDS, [packed, upper, lower], dtype=PACKING[5], is_pure=True, pack=1
        )
    else:
        a, b, c, d, e, f, g, h = _in_fp32(packed, upper, lower, PACKING, DTYPE)
    even = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.join(even, tl.join(tl.join(e, f), tl.join(g, h)))
