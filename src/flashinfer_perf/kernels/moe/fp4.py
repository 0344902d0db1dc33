"""NVFP4 weights to 16 bits, exactly: an element times its block's scale has six significant bits.

An element's three bits of exponent and mantissa, put where a 16-bit format has its own, are the element times a power
of two, and zero and the subnormal 0.5 are no exceptions. What is missing of that power goes into the block's scale, as
far as the format reaches, and the rest, ``REMAINDER``, into what the products are scaled by.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl

REMAINDER = tl.constexpr(128.0)
"""What products of decoded weights must be multiplied by."""
BF16_SCALE, FP16_SCALE = tl.constexpr(2.0**119), tl.constexpr(2.0**7)
"""2^126 and 2^14 less the remainder: the largest scale, 448, times either is finite."""


def _bf16(source: str, odd: bool) -> str:
    """A product by two powers of two has a code twice, once where its sign belongs and once where the rest does."""
    shift = 4 if odd else 0
    return f"""
    and.b32 p, {source}, 0x{0xF000F << shift:08X};
    mul.lo.u32 p, p, 0x{0x1040 >> shift:08X};
    and.b32 p, p, 0x81C081C0;"""


def _fp16(source: str, odd: bool) -> str:
    """In fp16 the two would overlap."""
    shift = 4 if odd else 0
    return f"""
    shl.b32 p, {source}, {12 - shift};
    shl.b32 q, {source}, {9 - shift};
    and.b32 q, q, 0x0E000E00;
    lop3.b32 p, p, 0x80008000, q, 0xEA;"""


def _asm(decoded: Callable[[str, bool], str], dtype: str) -> str:
    """Four bytes to their even and their odd elements, two at once, times a scale for every two bytes.

    Negative zero is added, since there is no plain product of pairs before Hopper: zeros keep their signs.
    """
    parts = [
        f"{decoded(source, odd)}\n    fma.rn.{dtype} ${2 * odd + half}, p, ${5 + half}, z;"
        for odd in (False, True)
        for half, source in enumerate("ab")
    ]
    start = "{\n    .reg .b32 a, b, p, q, z;\n    mov.b32 z, 0x80008000;\n"
    spread = "    prmt.b32 a, $4, 0, 0x4140;\n    prmt.b32 b, $4, 0, 0x4342;"
    return start + spread + "".join(parts) + "\n    }"


NATIVE_BF16, NATIVE_FP16 = tl.constexpr(_asm(_bf16, "bf16x2")), tl.constexpr(_asm(_fp16, "f16x2"))
OPERANDS = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r")
"""Results are written while there is still something to read."""


@triton.jit
def _element(code):
    """fp32 of int32 codes 0 … 15, times 2^-126."""
    return (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True)


@triton.jit
def decode(packed, scale, HALF: tl.constexpr, HARDWARE: tl.constexpr):
    """(rows, n / 2) bytes with (rows, n / 16) scales: even and odd elements, (rows, n / 2) each, over ``REMAINDER``.

    Args:
        packed: uint8; the even element is in the low half.
        scale: float8e4nv.
        HARDWARE: by PTX, two elements at once; otherwise in fp32, which has the range of bf16.
    """
    DTYPE: tl.constexpr = tl.float16 if HALF else tl.bfloat16
    ROWS: tl.constexpr = packed.shape[0]
    BYTES: tl.constexpr = packed.shape[1]
    shifted = scale.to(tl.float32) * (FP16_SCALE if HARDWARE and HALF else BF16_SCALE)
    shifted = shifted.to(DTYPE) if HARDWARE else shifted
    spread = tl.broadcast_to(shifted[:, :, None], ROWS, BYTES // 8, 8).reshape(ROWS, BYTES)
    if HARDWARE:
        asm: tl.constexpr = NATIVE_FP16 if HALF else NATIVE_BF16
        even, odd = tl.inline_asm_elementwise(
            asm, OPERANDS, [packed, spread], dtype=(spread.dtype, spread.dtype), is_pure=True, pack=4
        )
    else:
        codes = packed.to(tl.int32)
        even, odd = (_element(codes & 0xF) * spread).to(DTYPE), (_element(codes >> 4) * spread).to(DTYPE)
    return even, odd
