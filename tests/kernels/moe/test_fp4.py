"""The PTX that decodes NVFP4, instruction by instruction without a GPU: every byte, beside ``formats.e2m1``."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.formats import e2m1
from flashinfer_perf.kernels.moe.fp4 import BF16_SCALE, FP16_SCALE, NATIVE_BF16, NATIVE_FP16, REMAINDER

WORD = 0xFFFFFFFF
EVERY_BYTE = torch.arange(256)
FORMATS = [
    (NATIVE_BF16.value, torch.bfloat16, BF16_SCALE.value),
    (NATIVE_FP16.value, torch.float16, FP16_SCALE.value),
]


def permuted(low: int, high: int, selector: int) -> int:
    """prmt: four of eight bytes."""
    pool = low | high << 32
    return sum((pool >> 8 * (selector >> 4 * byte & 7) & 0xFF) << 8 * byte for byte in range(4))


def two_floats(word: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([word & 0xFFFF, word >> 16]).to(torch.uint16).view(dtype).double()


INTEGERS = {
    "mov.b32": lambda a: a,
    "prmt.b32": permuted,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b & WORD,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table],
}


def executed(text: str, registers: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    for line in text.strip(" {}\n").split(";"):
        name, _, rest = line.strip().partition(" ")
        target, *sources = (operand.strip() for operand in rest.split(","))
        values = [registers[source] if source in registers else int(source, 0) for source in sources if name != ".reg"]
        if name in INTEGERS:
            registers[target] = INTEGERS[name](*values)
        elif name.startswith("fma.rn"):
            left, right, _ = (two_floats(value, dtype) for value in values)
            registers[target] = (left * right).to(dtype).double()
    return registers


@pytest.mark.parametrize("scale", [448.0, 2.0**-9, 1.75])
@pytest.mark.parametrize(("text", "dtype", "factor"), FORMATS)
def test_every_byte(text, dtype, factor, scale):
    word = int(torch.tensor(scale * factor, dtype=dtype).view(torch.uint16).item())
    for packed in EVERY_BYTE.view(-1, 4):
        start = {"$4": sum(int(byte) << 8 * at for at, byte in enumerate(packed)), "$5": word | word << 16}
        found = executed(text, start | {"$6": start["$5"]}, dtype)
        for codes, registers in ((packed & 0xF, ("$0", "$1")), (packed >> 4, ("$2", "$3"))):
            values = torch.cat([found[register] for register in registers]) * REMAINDER.value
            assert torch.equal(values, e2m1.decode(codes).double() * scale)
