"""Rows of NVFP4 back to 16 bits, for kernels that take those."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 16
"""Elements that share a scale."""
SCALES = 64
"""That a program has."""


@triton.jit
def _value(code):
    """fp32 of E2M1 codes: a sign, two bits of exponent, one of significand; exponent 0 has no hidden bit."""
    exponent = (code >> 1) & 3
    half = (code & 1).to(tl.float32) * 0.5
    size = tl.where(exponent == 0, half, (1 + half) * (1 << tl.maximum(exponent - 1, 0)).to(tl.float32))
    return tl.where(code & 8 != 0, -size, size)


@triton.jit
def _decode(packed, scales, out, factor, blocks, BLOCK: tl.constexpr, SCALES: tl.constexpr):
    """Some blocks of one row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * SCALES + tl.arange(0, SCALES)
    there = (block < blocks)[:, None]
    bits = tl.load(scales + row * blocks + block, mask=block < blocks, other=0)
    scale = bits.to(tl.float8e4nv, bitcast=True).to(tl.float32) / factor
    byte = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    codes = tl.load(packed + row * blocks * (BLOCK // 2) + byte, mask=there, other=0).to(tl.int32)
    low, high = _value(codes & 15) * scale[:, None], _value(codes >> 4) * scale[:, None]
    start = out + row * blocks * BLOCK + 2 * byte
    tl.store(start, low.to(out.dtype.element_ty), mask=there)
    tl.store(start + 1, high.to(out.dtype.element_ty), mask=there)


def decode_rows(packed: torch.Tensor, scales: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out = element * scale / factor, rounded once.

    Args:
        packed: (rows, columns / 2) uint8, the even element in the low half; scales: (rows, columns / 16) bytes of e4m3.
        out: (rows, columns) bf16 or fp16. All contiguous.
    """
    rows, blocks = scales.shape
    grid = (rows, triton.cdiv(blocks, SCALES))
    if rows:
        _decode[grid](packed, scales.view(torch.uint8), out, factor, blocks, BLOCK, SCALES)
