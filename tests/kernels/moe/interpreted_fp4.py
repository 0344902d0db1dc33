"""Decodes NVFP4 in Triton's interpreter, a process of its own, and prints {case: whether all elements are right}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch
import triton
import triton.language as tl

from flashinfer_perf.formats import e2m1
from flashinfer_perf.kernels.moe.fp4 import REMAINDER, decode
from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, scales_of, words_of
from tests.kernels import rounding_interpreter

BLOCKS, WORDS = 64, 64
"""Enough for each of 126 scales with each byte at each place, in either row."""


@triton.jit
def decode_all(packed, scales, out, BLOCKS: tl.constexpr, WORDS: tl.constexpr):
    block, word = tl.arange(0, BLOCKS)[:, None], tl.arange(0, WORDS)[None, :]
    pair = tl.arange(0, WORDS // 4)[None, :]
    words, factors = tl.load(packed + block * WORDS + word), tl.load(scales + block * (WORDS // 4) + pair)
    elements = decode(words, factors, out.dtype.element_ty, False).reshape(BLOCKS * WORDS * 8)
    tl.store(out + tl.arange(0, BLOCKS * WORDS * 8), elements)


def is_right(dtype: torch.dtype, words_for: torch.dtype) -> bool:
    codes = torch.randint(0, 256, (BLOCKS, WORDS, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = (torch.arange(BLOCKS * WORDS // 2) % 126 + 1).to(torch.uint8)
    out = torch.empty(BLOCKS, WORDS, 2, 2, 2, dtype=dtype)
    packed = words_of(codes, PACKINGS[words_for]).view(torch.int32)
    decode_all[(1,)](packed, scales_of(scales).view(torch.uint16), out, BLOCKS, WORDS)
    # A byte's two elements; the byte in a row, the row, and odd after even
    elements = e2m1.decode(torch.stack((codes & 0xF, codes >> 4), dim=-1)).view(BLOCKS, WORDS, 2, 2, 2)
    factors = scales.view(torch.float8_e4m3fn).float().view(BLOCKS, WORDS // 4, 2).repeat_interleave(4, dim=1)
    truth = elements.transpose(2, 3) * factors[:, :, None, :, None]
    found = out.float() * REMAINDER.value
    return torch.equal(found, truth) and torch.equal(found.signbit(), truth.signbit())


if __name__ == "__main__":
    rounding_interpreter.install()  # by itself it loses bf16's subnormals, of which 0.5 is one when it is placed
    other = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}
    found = {str(dtype): is_right(dtype, dtype) for dtype in PACKINGS}
    print(json.dumps(found | {f"{dtype}, words of the other": is_right(dtype, other[dtype]) for dtype in PACKINGS}))
