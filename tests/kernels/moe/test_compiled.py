"""What the compiler makes of a mixture's products for Hopper, which needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from triton import knobs

from flashinfer_perf.kernels.moe.activations import GATED
from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.kernels.moe.fp4_weights import PreparedFp4
from flashinfer_perf.kernels.moe.tuning import BY_CAPABILITY, HopperProduct, HopperTiles, ProductTiles, Tiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights
from tests.kernels.moe.compiling import call, compile_instead

HOPPER, ADA = (9, 0), (8, 9)
SHARED_BYTES = {HOPPER: 227 << 10, ADA: 99 << 10}
"""Of a program, at most."""
HIDDEN, INTERMEDIATE, EXPERTS = 7168, 2048, 2
MANY = Tiles(128, 8, ProductTiles(64, 64, 8, 3), ProductTiles(64, 64, 8, 3), extra=64)


def weights(format: ExpertFormat, dtype: torch.dtype = torch.bfloat16, gated: bool = True) -> ExpertWeights:
    """DeepSeek-R1's sizes, of memory that nobody touches, for activations of a dtype."""
    first, second = (EXPERTS, (2 if gated else 1) * INTERMEDIATE, HIDDEN), (EXPERTS, HIDDEN, INTERMEDIATE)
    of = lambda dtype, *shape: torch.empty(shape, dtype=dtype)  # noqa: E731
    if format is ExpertFormat.BF16:
        return ExpertWeights(format, of(dtype, *first), of(dtype, *second))
    if format is ExpertFormat.NVFP4:
        elements = (of(torch.uint8, *shape[:2], shape[2] // 2) for shape in (first, second))
        scales = (of(torch.uint8, *shape[:2], shape[2] // 16) for shape in (first, second))
        return PreparedFp4(format, *elements, *scales, torch.ones(EXPERTS), torch.ones(EXPERTS), dtype=dtype)
    elements = (of(torch.float8_e4m3fn, *shape) for shape in (first, second))
    shapes = ((EXPERTS,),) * 2 if format is ExpertFormat.FP8_TENSOR else (first[:2], second[:2])
    if format is ExpertFormat.FP8_BLOCK:
        shapes = tuple((EXPERTS, shape[1] // 128, shape[2] // 128) for shape in (first, second))
    return ExpertWeights(format, *elements, *(of(torch.float32, *shape) for shape in shapes))


def compiled(
    monkeypatch,
    format: ExpertFormat,
    tokens: int,
    capability=HOPPER,
    tiles=None,
    dtype=torch.bfloat16,
    activation: str = "Swiglu",
) -> dict[str, Any]:
    found = compile_instead(monkeypatch, capability)
    options = {"num_tokens": tokens, "top_k": 1, "num_experts": EXPERTS, "dtype": dtype, "activation": activation}
    call(TritonExperts(weights(format, dtype, gated=activation in GATED), **options, tiles=tiles))
    return found


PRODUCTS = ("first_product", "second_product")
INSTRUCTION = {
    ExpertFormat.BF16: r"wgmma\.mma_async\S+\.m64n\d+k16\.f32\.bf16\.bf16",
    ExpertFormat.FP8_CHANNEL: r"wgmma\.mma_async\S+\.m64n\d+k32\.f32\.e4m3\.e4m3",
    ExpertFormat.FP8_BLOCK: r"wgmma\.mma_async\S+\.m64n\d+k32\.f32\.e4m3\.e4m3",
    ExpertFormat.NVFP4: r"wgmma\.mma_async\S+\.m64n\d+k16\.f32\.bf16\.bf16",
}


@pytest.mark.parametrize("format", INSTRUCTION)
def test_few_tokens_stream_weights_past_the_registers(monkeypatch, format):
    found = compiled(monkeypatch, format, 2)
    for name in PRODUCTS:
        ptx = found[name].asm["ptx"]
        assert re.search(INSTRUCTION[format], ptx)
        assert "cp.async.cg.shared.global" in ptx, "loads overlap with products"
        assert ".local" not in ptx, "nothing is spilt"
        assert found[name].metadata.shared <= SHARED_BYTES[HOPPER]


def test_decoded_weights_go_from_registers_to_tensor_cores(monkeypatch):
    """Neither elements nor their scales pass between threads but by the one way from shared memory."""
    found = compiled(monkeypatch, ExpertFormat.NVFP4, 2)
    for name in PRODUCTS:
        loop = re.search(r"scf\.for.*?scf\.yield", found[name].asm["ttgir"], re.DOTALL).group()
        dots = [line for line in loop.splitlines() if "warp_group_dot " in line]
        assert dots
        assert all(re.search(r": tensor<\S+, #\S+dot_op<", line) for line in dots)
        assert "local_alloc" not in loop
        loads = re.findall(r"ld\.global\S*", found[name].asm["ptx"].split("wgmma.mma_async")[1])
        assert loads == [], "scales are copied ahead, too"


@pytest.mark.parametrize(("capability", "product"), [(HOPPER, "wgmma.mma_async"), (ADA, "mma.sync")])
def test_fp16_has_words_of_its_own(monkeypatch, capability, product):
    """A pair takes one operation with floats, and no rearrangement of bf16's words."""
    found = compiled(monkeypatch, ExpertFormat.NVFP4, 2, capability, dtype=torch.float16)
    for name in PRODUCTS:
        ptx = found[name].asm["ptx"]
        assert re.search(rf"{re.escape(product)}\S+\.f32\.f16\.f16", ptx)
        counts = {text: ptx.count(text) for text in ("fma.rn.f16x2", "0x8E008E00;", "0x4008;", "0x8040;")}
        words = counts["fma.rn.f16x2"] // 4
        assert words
        assert counts == {"fma.rn.f16x2": 4 * words, "0x8E008E00;": 4 * words, "0x4008;": words, "0x8040;": words}
        assert ".local" not in ptx
        assert found[name].metadata.shared <= SHARED_BYTES[capability]


@pytest.mark.parametrize("format", [ExpertFormat.FP8_CHANNEL, ExpertFormat.NVFP4])
def test_many_tokens_multiply_weights_once_for_all_of_a_block(monkeypatch, format):
    found = compiled(monkeypatch, format, 256, tiles=MANY)
    for name in PRODUCTS:
        sizes = set(re.findall(r"wgmma\.mma_async\S+\.m64n(\d+)k", found[name].asm["ptx"]))
        assert {"64", "32", "16"} <= sizes or {"128", "64", "32", "16"} <= sizes
        assert ".local" not in found[name].asm["ptx"]
        assert found[name].metadata.shared <= SHARED_BYTES[HOPPER]


MOST_SPILT = 128
"""Bytes of a thread: Triton 3.9 spills so much of the block-scaled kernel, 3.6 nothing. Sums would be more."""


def spilt_bytes(kernel: Any) -> int:
    """On the stack of a thread. Registers are given out after PTX, so that it does not say."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(re.search(r"STACK:(\d+)", done.stdout).group(1))


NARROW, WIDE = HopperProduct(128, 4), HopperProduct(256, 4)
HOPPERS = [
    (ExpertFormat.FP8_BLOCK, HopperTiles(3, 4, HopperProduct(128, 5), NARROW)),
    (ExpertFormat.FP8_TENSOR, HopperTiles(3, 4, HopperProduct(128, 5), NARROW)),
    (ExpertFormat.FP8_CHANNEL, HopperTiles(2, 4, WIDE, HopperProduct(256, 3))),
    (ExpertFormat.BF16, HopperTiles(3, 4, NARROW, NARROW)),
]


@pytest.mark.parametrize(("format", "tiles"), HOPPERS)
def test_hoppers_own_kernel_loads_by_the_copy_engine_and_multiplies_in_warpgroups(monkeypatch, format, tiles):
    found = compiled(monkeypatch, format, 256, tiles=tiles)
    for name, product in (("hopper_product Swiglu", tiles.first), ("hopper_product Identity", tiles.second)):
        ptx = found[name].asm["ptx"]
        assert "cp.async.bulk.tensor" in ptx
        # Four products of 32 of a block's 128 bytes of k, in each part
        kind = r"k16\.f32\.bf16\.bf16" if format is ExpertFormat.BF16 else r"k32\.f32\.e4m3\.e4m3"
        instruction = rf"wgmma\.mma_async\S+\.m64n{product.columns}{kind}"
        assert len(re.findall(instruction, ptx)) == 4 * tiles.parts
        assert spilt_bytes(found[name]) <= MOST_SPILT
        assert found[name].metadata.shared <= SHARED_BYTES[HOPPER]


OWN = [
    (format, entry.tiles)
    for format, tuned in BY_CAPABILITY[HOPPER].items()
    for entry in tuned
    if isinstance(entry.tiles, HopperTiles)
]


@pytest.mark.parametrize("activation", ["Swiglu", "Relu2"])
@pytest.mark.parametrize(("format", "tiles"), OWN)
def test_hopper_has_the_memory_for_every_tile_that_is_chosen(monkeypatch, format, tiles, activation):
    """Results of an activation without a gate are twice as wide."""
    found = compiled(monkeypatch, format, 256, tiles=tiles, activation=activation)
    products = {name: kernel for name, kernel in found.items() if name.startswith("hopper_product")}
    assert set(products) == {f"hopper_product {activation}", "hopper_product Identity"}
    assert max(kernel.metadata.shared for kernel in products.values()) <= SHARED_BYTES[HOPPER]


@pytest.mark.parametrize(("format", "tokens"), [(ExpertFormat.BF16, 2), (ExpertFormat.FP8_BLOCK, 256)])
def test_ada_has_the_memory_for_it(monkeypatch, format, tokens):
    found = compiled(monkeypatch, format, tokens, ADA)
    for name in PRODUCTS:
        assert "mma.sync" in found[name].asm["ptx"]
        assert found[name].metadata.shared <= SHARED_BYTES[ADA]
