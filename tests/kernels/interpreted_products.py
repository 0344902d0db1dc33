"""Runs the FP8 products in Triton's interpreter, a process of its own, and prints {case: relative error}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

from flashinfer_perf.kernels.gemm_fp8_tuning import GemmTiling
from tests.kernels.multiplied import Product, relative_error

WIDE = GemmTiling(rows=64, columns=128, warps=4, stages=3)
TILINGS = {"wide": WIDE, "narrow": WIDE._replace(columns=64), "flat": WIDE._replace(rows=16)}
ROWS = {"one group": (0, 70), "groups": (0, 66, 132), "ragged groups": (0, 5, 5, 70)}


def products() -> dict[str, Product]:
    found = {"broken": Product((0, 70), 128, 128, "K", WIDE, spoilt=True)}
    for label, tiles in TILINGS.items():
        for rows, offsets in ROWS.items():
            for mode in ("K", "MN"):
                found[f"{label}, {rows}, {mode}"] = Product(offsets, 256, 256, mode, tiles)
    return found


if __name__ == "__main__":
    print(json.dumps({label: relative_error(product, "cpu") for label, product in products().items()}))
