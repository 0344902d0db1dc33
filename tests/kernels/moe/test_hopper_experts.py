"""What the mixture for Hopper does around its products, without a GPU; and what it refuses.

``test_compiled`` has what the compiler makes of the products, ``tests/gpu/test_moe_kernels.py`` what they compute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.options import check_tiles
from flashinfer_perf.kernels.moe.tuning import HopperProduct, HopperTiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat

ROOT = Path(__file__).parents[3]
ROUNDINGS = 2 * 2**-9
"""Relative: an intermediate value, a product and a sum are rounded to bf16, by 2^-9 at most each, and by less than half
of that on average."""
NARROW, WIDE = HopperProduct(128, 4), HopperProduct(256, 4)


@pytest.mark.slow
def test_rows_and_scales_are_where_products_find_them():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.moe.interpreted_hopper"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    errors = json.loads(done.stdout)
    assert errors.pop("broken") > 0.1
    assert len(errors) == 20
    assert {label: error for label, error in errors.items() if not error < ROUNDINGS} == {}


@pytest.mark.parametrize(
    ("tiles", "format", "capability", "message"),
    [
        (HopperTiles(3, 4, NARROW, NARROW), ExpertFormat.NVFP4, (9, 0), "tiles are HopperTiles for nvfp4 on .* 9.0"),
        (HopperTiles(3, 4, NARROW, NARROW), ExpertFormat.FP8_BLOCK, (8, 9), "give them for FP8 or 16 bits on 9.0, "),
        (HopperTiles(1, 4, NARROW, NARROW), ExpertFormat.FP8_BLOCK, (9, 0), "give 2 or 3 parts and columns of 128 for"),
        (HopperTiles(2, 4, WIDE, NARROW), ExpertFormat.FP8_BLOCK, (9, 0), "columns of 128 for fp8 128x128 blocks"),
        (HopperTiles(3, 4, NARROW, WIDE), ExpertFormat.FP8_TENSOR, (9, 0), "columns of 128 for fp8 per tensor"),
        (HopperTiles(2, 4, NARROW, HopperProduct(64, 4)), ExpertFormat.FP8_CHANNEL, (9, 0), "columns of 128 or 256"),
    ],
)
def test_tiles_without_a_kernel_are_refused(tiles, format, capability, message):
    with pytest.raises(ValueError, match=message):
        check_tiles(tiles, format, capability)


def test_tiles_with_one_are_taken():
    check_tiles(HopperTiles(2, 4, WIDE, WIDE), ExpertFormat.FP8_CHANNEL, (9, 0))
    check_tiles(HopperTiles(3, 4, NARROW, NARROW), ExpertFormat.FP8_BLOCK, (9, 0))
    check_tiles(HopperTiles(2, 4, WIDE, NARROW), ExpertFormat.BF16, (9, 0))
