"""Runs the quantisers in Triton's interpreter, a process of its own, and prints {case: differing (values, scales)}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder

from flashinfer_perf.formats import scale_layout
from flashinfer_perf.kernels.quantize_tuning import QuantizeTiling
from tests.kernels.quantised import Case, differences, every_amax, every_pattern

LARGE = QuantizeTiling(rows=128, blocks=8, warps=4, whole=True)
PARTS = LARGE._replace(whole=False, parts=3)
SMALL = QuantizeTiling(rows=16, blocks=4, warps=4, whole=True, parts=2)
FORMATS = ("mxfp8", "mxfp4", "nvfp4")


def as_the_hardware_does() -> None:
    """The interpreter's minimum and maximum give NaN where PTX gives the number; its products may be negative NaN."""

    def product(left, right):
        result = left * right
        return np.where(np.isnan(result), np.asarray(np.nan, result.dtype), result)

    InterpreterBuilder.create_minnumf = lambda self, left, right: self.binary_op(left, right, np.fmin)
    InterpreterBuilder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, np.fmax)
    InterpreterBuilder.create_fmul = lambda self, left, right: self.binary_op(left, right, product)


def cases() -> dict[str, Case]:
    return (
        exhaustive() | ragged() | nvfp4_only() | {"broken": Case("mxfp4", normal(8, 64), "linear", SMALL, spoilt=True)}
    )


def exhaustive() -> dict[str, Case]:
    found = {}
    for name in FORMATS:
        for dtype in (torch.bfloat16, torch.float16):
            label = f"{name} {dtype}".replace("torch.", "")
            found[f"{label} every pattern"] = Case(name, every_pattern(dtype), "128x4", PARTS)
            found[f"{label} every amax"] = Case(name, every_amax(dtype, name), "linear", LARGE)
    return found


def ragged() -> dict[str, Case]:
    found = {}
    for name in FORMATS:
        for layout in scale_layout.LAYOUTS:
            for rows, columns in ((1, 32), (5, 96), (130, 160)):
                case = Case(name, normal(rows, columns), layout, SMALL, alignment=64)
                found[f"{name} {layout} {rows}x{columns}"] = case
    return found


def nvfp4_only() -> dict[str, Case]:
    amaxes = every_amax(torch.bfloat16, "nvfp4")[::8]
    scales = (0.37, 2688 / 4.3, 1e-3, 3e37, 1e-38)
    found = {f"nvfp4 global scale {scale:.3g}": Case("nvfp4", amaxes, "8x4", LARGE, scale) for scale in scales}
    found["nvfp4 batch"] = Case("nvfp4", normal(3, 65, 80), "128x4", SMALL, 0.37)
    for layout, rows in (("128x4", 256), ("8x4", 160), ("linear", 96)):
        found[f"nvfp4 shuffled {layout}"] = Case("nvfp4", normal(rows, 64), layout, SMALL, shuffled=True)
    return found


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


if __name__ == "__main__":
    as_the_hardware_does()
    with np.errstate(all="ignore"):
        print(json.dumps({label: differences(case) for label, case in cases().items()}))
