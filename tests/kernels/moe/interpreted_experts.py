"""Runs fused mixtures in Triton's interpreter, a process of its own, and prints {case: relative error}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import numpy as np
import torch

from flashinfer_perf.kernels.moe.activations import ACTIVATIONS
from flashinfer_perf.kernels.moe.tuning import ProductTiles, Tiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat
from tests.kernels import rounding_interpreter
from tests.kernels.moe.mixture import Mixture, relative_error

NARROW = Tiles(16, 4, ProductTiles(32, 64, 4, 2), ProductTiles(32, 64, 4, 2))
WIDE = Tiles(32, 1, ProductTiles(128, 128, 4, 2), ProductTiles(128, 256, 4, 2))
EXTRA = NARROW._replace(extra=64)
LOADS = (0, 20, 33, 81)
"""One for each size of a tile with extra rows, with none, and one of two blocks."""
FORMATS = (ExpertFormat.BF16, ExpertFormat.FP8_CHANNEL, ExpertFormat.FP8_BLOCK, ExpertFormat.NVFP4)
"""FP8 per tensor takes the way of FP8 per channel; ``of_scales`` has where they differ."""
SMALL = Mixture(ExpertFormat.BF16, tokens=4, experts=4, top_k=2, hidden=128)


def cases() -> dict[str, Mixture]:
    found = {f"activation {name}": SMALL._replace(activation=name) for name in ACTIVATIONS}
    for format in FORMATS:
        found |= {f"{format.value}, {label}": case for label, case in of_format(SMALL._replace(format=format)).items()}
    sizes = SMALL._replace(experts=len(LOADS), tokens=sum(LOADS), top_k=1, loads=LOADS, tiles=EXTRA)
    for format in (ExpertFormat.BF16, ExpertFormat.FP8_BLOCK, ExpertFormat.NVFP4):
        found[f"{format.value}, every size of a block"] = sizes._replace(format=format)
    return found | of_scales()


def of_format(small: Mixture) -> dict[str, Mixture]:
    return {
        "not gated": small._replace(activation="Relu2"),
        "fp16": small._replace(dtype=torch.float16),
        "one token": small._replace(tokens=1),
        "no token of an expert that is here": small._replace(tokens=3, experts=8, busy=3, offset=2, local=4),
        "local experts": small._replace(tokens=7, experts=8, top_k=3, offset=2, local=3),
        "more rows than a block has": small._replace(tokens=20, busy=2, tiles=NARROW),
        "wide tiles": small._replace(tokens=9, hidden=256, tiles=WIDE),
        "scales on the input": small._replace(on_input=True, top_k=1),
        "broken": small._replace(spoilt=True),
    }


def of_scales() -> dict[str, Mixture]:
    """What FP8 weights leave open of the activations' scales; sizes that tiles do not divide."""
    tensor, channel = (SMALL._replace(format=ExpertFormat(f"fp8 per {unit}")) for unit in ("tensor", "channel"))
    block, fp4 = SMALL._replace(format=ExpertFormat.FP8_BLOCK), SMALL._replace(format=ExpertFormat.NVFP4)
    return {
        "per tensor": tensor,
        "static": tensor._replace(static=True),
        "static, channels": channel._replace(static=True),
        "static, quantised": tensor._replace(static=True, quantised=True),
        "a second call": tensor._replace(calls=2),
        "per token": tensor._replace(per_token=True),
        "per tensor, channels": channel._replace(per_token=False),
        "quantised, per token": channel._replace(quantised=True),
        "quantised, per tensor": tensor._replace(quantised=True),
        "quantised, blocks": block._replace(quantised=True, hidden=256),
        "ragged 16-bit": SMALL._replace(hidden=80, intermediate=48, tiles=NARROW),
        "ragged per token": channel._replace(hidden=80, intermediate=48, tiles=NARROW),
        "ragged fp4": fp4._replace(hidden=192, intermediate=320, tiles=WIDE),
    }


if __name__ == "__main__":
    rounding_interpreter.install()
    with np.errstate(all="ignore"):
        print(json.dumps({label: relative_error(case) for label, case in cases().items()}))
