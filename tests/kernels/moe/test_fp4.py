"""The PTX that decodes NVFP4, instruction by instruction without a GPU: every byte, beside ``formats.e2m1``."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.formats import e2m1
from flashinfer_perf.kernels.moe.fp4 import (
    BF16_EXPONENT,
    BF16_SCALE,
    FP16_SCALE,
    NATIVE_BF16,
    NATIVE_FP16,
    REMAINDER,
)
from flashinfer_perf.kernels.moe.fp4_words import scales_of, words_of

WORD = 0xFFFFFFFF
EVERY_BYTE = torch.arange(256, dtype=torch.uint8)
FORMATS = [
    (NATIVE_BF16.value, torch.bfloat16, BF16_SCALE.value, BF16_EXPONENT.value, 2.0**119),
    (NATIVE_FP16.value, torch.float16, FP16_SCALE.value, 0, 2.0**7),
]


def two_floats(word: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([word & 0xFFFF, word >> 16]).to(torch.uint16).view(dtype).double()


INTEGERS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b & WORD,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "shf.r.wrap.b32": lambda a, b, k: (a | b << 32) >> k & WORD,
    "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table],
}


def executed(text: str, registers: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    for line in text.strip(" {}\n").split(";"):
        name, _, rest = line.strip().partition(" ")
        *targets, source = (operand.strip(" {}") for operand in rest.split(","))
        if name == "mov.b32" and len(targets) == 2:
            registers |= zip(targets, registers[source], strict=True)
            continue
        target, *sources = (*targets, source)
        values = [registers[source] if source in registers else int(source, 0) for source in sources if name != ".reg"]
        if name in INTEGERS:
            registers[target] = INTEGERS[name](*values)
        elif name.startswith("fma.rn"):
            left, right, _ = (two_floats(value, dtype) for value in values)
            registers[target] = (left * right).to(dtype).double()
    return registers


def scale_word(scale: torch.Tensor, factor: int, exponent: int) -> int:
    return int(scales_of(scale)) * factor + exponent


@pytest.mark.parametrize(("text", "dtype", "factor", "exponent", "power"), FORMATS)
def test_every_scale(text, dtype, factor, exponent, power):
    """Those that E4M3 has and that are neither negative nor NaN."""
    for scale in EVERY_BYTE[1:0x7F]:
        value = scale.view(torch.float8_e4m3fn).double()
        both = two_floats(scale_word(scale, factor, exponent), dtype)
        assert torch.equal(both, torch.full((2,), value * power, dtype=torch.double))


@pytest.mark.parametrize("scale", [448.0, 2.0**-9, 1.75])
@pytest.mark.parametrize(("text", "dtype", "factor", "exponent", "power"), FORMATS)
def test_every_byte_at_every_place(text, dtype, factor, exponent, power, scale):
    """Bytes 0 and 1 have one scale, and bytes 2 and 3 another."""
    two = torch.tensor([scale, 1.0])
    words = [scale_word(value.to(torch.float8_e4m3fn).view(torch.uint8), factor, exponent) for value in two]
    for shift in range(4):
        for packed in EVERY_BYTE.roll(shift).view(-1, 4):
            word = int.from_bytes(words_of(packed).tolist(), "little")
            found = executed(text, {"$8": word, "$9": words[0], "$10": words[1]}, dtype)
            values = torch.stack([found[f"${at}"] for at in range(8)]).view(2, 4) * REMAINDER.value
            truth = e2m1.decode(torch.stack((packed & 0xF, packed >> 4))).double()
            assert torch.equal(values, truth * two.double().repeat_interleave(2))
