"""What the compiler makes of the quantisers, which needs no GPU: memory in 16 bytes, nothing spilt, nothing fused."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashinfer_perf.kernels.quantize import COMPILER_OPTIONS, FP8_CONVERSION
from flashinfer_perf.kernels.quantize_blocks import quantize_blocks
from flashinfer_perf.kernels.quantize_tuning import tiling

FUSED = {"enable_fp_fusion": True}
TENSORS = {"x": "*bf16", "values": "*u8", "scales": "*u8"}


def compiled(name: str, capability: tuple[int, int], **changes: object) -> SimpleNamespace:
    tiles = tiling(name, capability)
    constants = {"FORMAT": name, "HALF": False, "LAYOUT": "128x4", "SHUFFLED": False}
    constants |= {"HARDWARE": capability >= FP8_CONVERSION, "ROWS": tiles.rows, "BLOCKS": tiles.blocks}
    constants |= {"WHOLE": tiles.whole} | {key: value for key, value in changes.items() if key not in FUSED}
    arguments = quantize_blocks.arg_names
    tensors = TENSORS | {"global_scale": "*fp32" if name == "nvfp4" else TENSORS["x"]}  # where it is unused, it is x
    signature = {key: "constexpr" if key in constants else tensors.get(key, "i32") for key in arguments}
    source = ASTSource(
        quantize_blocks,
        signature,
        {(arguments.index(key),): value for key, value in constants.items()},
        {(arguments.index(key),): [["tt.divisibility", 16]] for key in tensors},
    )
    options = {"num_warps": tiles.warps} | COMPILER_OPTIONS | {key: changes[key] for key in FUSED if key in changes}
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    return triton.compile(source, target=target, options=options).asm


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("changes", [{}, {"WHOLE": False}, {"LAYOUT": "8x4", "HALF": True}])
def test_memory_is_read_and_written_in_wide_words(name, capability, changes):
    ptx = compiled(name, capability, **changes)["ptx"]
    loads = re.findall(r"ld\.global\S*", ptx)
    wide = [load for load in loads if ".v4.b32" in load]
    assert wide
    assert len(wide) == len(loads) - (name == "nvfp4"), "and the global scale"
    assert re.search(r"st\.global\.v[24]\.b32", ptx)
    assert ".local" not in ptx


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_converted_by_an_instruction_where_there_is_one(capability, expected):
    assert ("cvt.rn.satfinite.e4m3x2.f32" in compiled("mxfp8", capability)["ptx"]) is expected


def test_every_product_is_rounded_before_it_is_added_to():
    """Of an element's three roundings, two are fused multiply-adds by 2 and by 1/2, which are exact; one is an
    addition, to what a product gave.
    """
    additions = [len(re.findall(r"\bFADD\b", compiled("nvfp4", (9, 0), **options)["sass"])) for options in ({}, FUSED)]
    tiles = tiling("nvfp4", (9, 0))
    elements_of_a_thread = tiles.rows * tiles.blocks * 16 // (tiles.warps * 32)
    assert additions[0] >= elements_of_a_thread > additions[1]
