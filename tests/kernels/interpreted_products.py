"""Runs the FP8 products in Triton's interpreter, a process of its own, and prints {case: relative error}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

from flashinfer_perf.kernels.gemm_fp8_tuning import GemmTiling
from tests.kernels.multiplied import Product, relative_error

PLAIN = GemmTiling(rows=64, columns=128, warps=4, stages=3, programs=0)
ONE_PROGRAM = PLAIN._replace(programs=1, neighbours=2)
TILINGS = {
    "tile by tile": PLAIN,
    "one program": ONE_PROGRAM,
    "narrow": ONE_PROGRAM._replace(columns=64),
    "overlap": ONE_PROGRAM._replace(overlap=True),
    "overlap, wide": ONE_PROGRAM._replace(columns=256, overlap=True),
}
ROWS = {"no groups": (0, 70), "groups": (0, 66, 132), "ragged groups": (0, 5, 5, 70)}


def products() -> dict[str, Product]:
    found = {"broken": Product((0, 70), 128, 128, "K", PLAIN, spoilt=True)}
    for label, tiles in TILINGS.items():
        for rows, offsets in ROWS.items():
            for mode in ("K", "MN") if tiles is PLAIN else ("MN",):
                found[f"{label}, {rows}, {mode}"] = Product(offsets, 384 if tiles.overlap else 256, 256, mode, tiles)
    return found


if __name__ == "__main__":
    print(json.dumps({label: relative_error(product, "cpu") for label, product in products().items()}))
