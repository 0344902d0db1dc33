"""The PTX that decodes NVFP4, instruction by instruction without a GPU: every byte, beside ``formats.e2m1``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.formats import e2m1
from flashinfer_perf.kernels.moe.fp4 import OF_BF16, OF_FP16, REMAINDER
from flashinfer_perf.kernels.moe.fp4_words import PACKINGS, scales_of, words_of

ROOT = Path(__file__).parents[3]
WORD = 0xFFFFFFFF
EVERY_BYTE = torch.arange(256, dtype=torch.uint8)
SCALES = torch.arange(1, 0x7F, dtype=torch.uint8)
"""Those that E4M3 has and that are neither negative nor zero nor NaN."""
BYTES = torch.cat([EVERY_BYTE.roll(shift) for shift in range(4)]).view(-1, 4)
"""Of words: every byte at every place."""
KERNELS = {torch.bfloat16: OF_BF16.value, torch.float16: OF_FP16.value}
POWERS = {torch.bfloat16: 2.0**119, torch.float16: 2.0**7}
"""What a scale is multiplied by."""
each_dtype = pytest.mark.parametrize("dtype", KERNELS)


def two_floats(word: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack((word & 0xFFFF, word >> 16), dim=-1).to(torch.uint16).view(dtype).double()


INTEGERS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "shf.r.wrap.b32": lambda a, b, k: (a | b << 32) >> k & WORD,
}
NUMBERS = {"fma.rn.bf16x2": torch.bfloat16, "fma.rn.f16x2": torch.float16}


def executed(text: str, registers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Registers after the instructions: int64 of 32 bits each, or two fp64 of which each is a number of 16 bits."""
    for line in text.strip(" {}\n").split(";"):
        name, _, rest = line.strip().partition(" ")
        if name in ("", ".reg"):
            continue
        *targets, source = (operand.strip(" {}") for operand in rest.split(","))
        if name == "mov.b32" and len(targets) == 2:
            registers |= zip(targets, registers[source].unbind(-1), strict=True)
            continue
        target, *sources = (*targets, source)
        values = [registers[s] if s in registers else torch.tensor(int(s, 0)) for s in sources]
        if name in INTEGERS:
            registers[target] = INTEGERS[name](*values)
        else:
            left, right, added = (two_floats(value, NUMBERS[name]) for value in values)
            registers[target] = (left * right + added).to(NUMBERS[name]).double()
    return registers


def scale_words(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    factor, exponent = KERNELS[dtype][3:5]
    return scales_of(scales).long() * factor + exponent


def decoded(text: str, dtype: torch.dtype, other_scale: int) -> torch.Tensor:
    """(words, scales, 2, 4): even elements and odd ones, where the first two bytes have the scales, and the others one
    other scale.
    """
    words = words_of(BYTES, PACKINGS[dtype]).view(torch.int32).long()[:, :1] & WORD
    other = scale_words(torch.tensor([other_scale], dtype=torch.uint8), dtype)
    found = executed(text, {"$8": words, "$9": scale_words(SCALES, dtype), "$10": other})
    parts = torch.broadcast_tensors(*(found[f"${at}"] for at in range(8)))
    return torch.stack(parts, dim=-1).unflatten(-1, (2, 4)) * REMAINDER.value


def truth(other_scale: int) -> torch.Tensor:
    elements = e2m1.decode(torch.stack((BYTES & 0xF, BYTES >> 4), dim=1)).double()[:, None]
    other = torch.tensor(other_scale, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    scales = SCALES.view(torch.float8_e4m3fn).double()
    two = torch.stack((scales, other.expand_as(scales)), dim=-1)
    return elements * two.repeat_interleave(2, dim=-1)[:, None]


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Zeros of another sign are not."""
    return torch.equal(left, right) and torch.equal(left.signbit(), right.signbit())


@each_dtype
def test_every_scale(dtype):
    value = SCALES.view(torch.float8_e4m3fn).double()
    assert torch.equal(two_floats(scale_words(SCALES, dtype), dtype), (value * POWERS[dtype])[:, None].expand(-1, 2))


@each_dtype
@pytest.mark.parametrize("other_scale", [0x01, 0x3D, 0x7E])
def test_every_byte_at_every_place_with_every_scale(dtype, other_scale):
    found = decoded(KERNELS[dtype][0], dtype, other_scale)
    assert found.shape == (256, len(SCALES), 2, 4)
    assert same(found, truth(other_scale))


@each_dtype
def test_a_scale_that_is_no_number_leaves_none(dtype):
    words = scale_words(torch.tensor([0x7F], dtype=torch.uint8), dtype)
    found = executed(KERNELS[dtype][0], {"$8": torch.tensor([0]), "$9": words, "$10": words})
    assert all(found[f"${at}"].isnan().all() for at in range(8))


BROKEN = {
    "no sign of zeros": (torch.float16, "0x80008000", "0x00000000"),
    "another factor": (torch.float16, "0x4008", "0x4010"),
    "a copy too many": (torch.float16, "0x8040", "0x8050"),
    "a bit not taken": (torch.float16, "0x00390039", "0x00290039"),
    "places of bf16": (torch.float16, "0x8E008E00", "0x81C081C0"),
    "another rotation": (torch.bfloat16, "$8, $8, 6", "$8, $8, 7"),
    "the other scale": (torch.bfloat16, "$9", "$10"),
    "elements exchanged": (torch.bfloat16, "{$0, $1}", "{$1, $0}"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_other_instructions_are_found(broken):
    dtype, right, wrong = BROKEN[broken]
    text = KERNELS[dtype][0]
    assert right in text
    assert not same(decoded(text.replace(right, wrong), dtype, 0x3D), truth(0x3D))


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 12), (torch.float16, 13)])
def test_how_many_instructions_eight_elements_take(dtype, count):
    """Moves take none, once registers are given out."""
    lines = [line.strip() for line in KERNELS[dtype][0].splitlines()]
    assert sum(line.startswith((*INTEGERS, *NUMBERS)) and not line.startswith("mov") for line in lines) == count


def test_the_interpreter_decodes_the_same():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.moe.interpreted_fp4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert json.loads(done.stdout) == {
        "torch.bfloat16": True,
        "torch.float16": True,
        "torch.bfloat16, words of the other": False,
        "torch.float16, words of the other": False,
    }
