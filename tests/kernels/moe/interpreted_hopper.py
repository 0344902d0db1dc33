"""Runs what the mixture for Hopper does around its products in Triton's interpreter, a process of its own, and prints
{case: relative error}. The interpreter runs no Gluon: here the products are fp32 mathematics over the same operands.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import numpy as np
import torch

from flashinfer_perf.kernels.moe import hopper_experts, options
from flashinfer_perf.kernels.moe.tuning import HopperProduct, HopperTiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat
from tests.kernels import rounding_interpreter
from tests.kernels.moe.mixture import BLOCK, Mixture, activated, relative_error

TILES = HopperTiles(2, 4, HopperProduct(128, 2), HopperProduct(128, 2))
LOADS = (0, 20, 64, 150)
"""None, less than a part, just a part, and more than a tile."""
SMALL = Mixture(ExpertFormat.FP8_BLOCK, tokens=7, experts=4, top_k=2, hidden=128, tiles=TILES)


class Product:
    """In the place of ``hopper_product``, and as it says."""

    def __getitem__(self, grid: tuple[int]) -> Product:
        return self

    def __call__(
        self, x, x_scale, x_scale_stride, w, w_scale, out, out_scale, blocks, stride, neighbours, n, across,
        blocks_of_k, *, SCALES, ACTIVATION, GATED, PARTS, **_,
    ) -> None:  # fmt: skip
        experts, rows, ends = blocks[1:].view(3, stride)
        case = SMALL._replace(activation="Swiglu" if GATED else ACTIVATION)
        for block in range(int(blocks[0])):
            some = slice(int(rows[block]), min(int(rows[block]) + 64 * PARTS, int(ends[block])))
            left = x.base[some].float() * spread(x_scale[some] if x_scale_stride else x_scale, x.base[some])
            right = weight(w.base, w_scale, int(experts[block]), n * (2 if GATED else 1), SCALES)
            out.base[some] = rounded(activated(case, left @ right.T), out.base.dtype, out_scale)


def spread(scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if scale.dim() == 1:
        return scale[:, None]
    return scale.repeat_interleave(BLOCK[1], 1)[:, : values.shape[1]]


def weight(w: torch.Tensor, scale: torch.Tensor, expert: int, rows: int, scales: str) -> torch.Tensor:
    matrix = w[expert * rows :][:rows].float()
    if scales == "none":
        return matrix
    own = scale[expert]
    if scales == "blocks":
        return matrix * own.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
    return matrix * (own[:, None] if scales == "channel" else own)


def rounded(values: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> torch.Tensor:
    if dtype == torch.float8_e4m3fn:
        values = (values / scale).clamp(-448, 448)
    return values.to(dtype)


def cases() -> dict[str, Mixture]:
    sixteen = SMALL._replace(format=ExpertFormat.BF16)
    tensor, channel = (SMALL._replace(format=ExpertFormat(f"fp8 per {unit}")) for unit in ("tensor", "channel"))
    return {
        "blocks": SMALL._replace(calls=2),
        "channels": channel,
        "tensor": tensor._replace(calls=2),
        "static": tensor._replace(static=True),
        "static, quantised": tensor._replace(static=True, quantised=True),
        "per token": tensor._replace(per_token=True),
        "quantised, blocks": SMALL._replace(quantised=True, hidden=256),
        "quantised, per token": channel._replace(quantised=True),
        "quantised, tensor": tensor._replace(quantised=True),
        "loads": SMALL._replace(tokens=sum(LOADS), top_k=1, loads=LOADS),
        "loads, tensor": tensor._replace(tokens=sum(LOADS), top_k=1, loads=LOADS, calls=2),
        "local experts": SMALL._replace(experts=8, top_k=3, offset=2, local=3),
        "no expert that is here": channel._replace(tokens=3, experts=8, busy=3, offset=2, local=4),
        "scales on the input": SMALL._replace(on_input=True, top_k=1),
        "scales on the input, channels": channel._replace(on_input=True, top_k=1, hidden=80, intermediate=48),
        "not gated": SMALL._replace(activation="Relu2", dtype=torch.float16),
        "16 bits": sixteen._replace(calls=2),
        "16 bits, loads": sixteen._replace(tokens=sum(LOADS), top_k=1, loads=LOADS),
        "fp16, not gated": sixteen._replace(activation="Relu2", dtype=torch.float16, hidden=80, intermediate=48),
        "16 bits, scales on the input": sixteen._replace(on_input=True, top_k=1),
        "broken": SMALL._replace(spoilt=True),
    }


if __name__ == "__main__":
    rounding_interpreter.install()
    options.HOPPER = (0, 0)
    hopper_experts.hopper_product = Product()
    hopper_experts._processors = lambda device: 4
    with np.errstate(all="ignore"):
        print(json.dumps({label: relative_error(case) for label, case in cases().items()}))
