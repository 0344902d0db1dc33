"""Hidden states in the formats that layers take them in. In each, what they stand for is exact in 16 bits or fp32.

A kernel may quantise them to the format once more, and loses nothing by it: of NVFP4 blocks that were encoded before,
the largest element is 6 again, hence the scale the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, fp8_tiles, nvfp4
from flashinfer_perf.formats.fp8_tiles import Fp8Tiles
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm.inputs import drawn_rows, tiled_fp8
from flashinfer_perf.routines.moe.flags import MoeFlags
from flashinfer_perf.run.factory import TensorFactory

NAME = "hidden_states"
TILE = (1, 128)
"""Columns of a token that share a scale in FP8 blocks."""
GLOBAL_SCALE = 256.0
"""Of NVFP4: a power of two, so that element * scale / 256 is exact in 16 bits. The largest magnitude is 2688 / 256, and
a normal number is not ten standard deviations large."""
INTERMEDIATE_LARGEST = 64.0
"""What the largest number of a format stands for in the second product's input. With values of rms 1 from the first
product, the largest of 10^10 products of two is about 42; block scales and e4m3 lose nothing by the headroom."""
BETWEEN_FP8 = fp8.LARGEST[DType.FP8_E4M3] / INTERMEDIATE_LARGEST
BETWEEN_FP4 = nvfp4.LARGEST / INTERMEDIATE_LARGEST
"""What the second product's input is multiplied by before it is rounded, to e4m3 or to NVFP4 with this global scale."""

Tensors = Mapping[str, "torch.Tensor"]


def plain(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """``x`` (tokens, hidden), standard normal."""
    return {"x": make.normal(NAME, (case.num_tokens, case.hidden_size), case.input_dtype)}


def fp8_tensor(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """``x`` in e4m3 and ``x_scale`` (1,) fp32 that it is multiplied by."""
    drawn = plain(case, make)["x"]
    make.reserve("x", drawn.shape, DType.FP8_E4M3)
    quantised = fp8.encode_tensor(drawn, DType.FP8_E4M3)
    return {"x": quantised.elements, "x_scale": quantised.scale[None]}


def fp8_block(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """``x`` in e4m3 and ``x_scale`` (tokens, hidden / 128) fp32."""
    quantised = tiled_fp8(make, NAME, (case.num_tokens, case.hidden_size), TILE)
    return {"x": quantised.elements, "x_scale": quantised.scales}


def fp4(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """``x`` (tokens, hidden) in 16 bits, and the same in NVFP4: ``x_packed`` (tokens, hidden / 2) and ``x_scale``
    (tokens, hidden / 16), bytes, row by row.
    """
    shape = (case.num_tokens, case.hidden_size)
    make.reserve("x", shape, case.input_dtype)
    make.reserve("x_packed", shape, DType.NVFP4)
    x = torch.empty(shape, dtype=case.input_dtype.torch, device=make.device)
    packed = torch.empty(shape[0], shape[1] // 2, dtype=torch.uint8, device=make.device)
    scales = torch.empty(shape[0], shape[1] // nvfp4.BLOCK, dtype=torch.uint8, device=make.device)
    for part, drawn in drawn_rows(make, NAME, shape):
        quantised = nvfp4.encode(drawn, GLOBAL_SCALE)
        packed[part], scales[part] = quantised
        x[part] = nvfp4.decode(quantised, GLOBAL_SCALE)
    return {"x": x, "x_packed": packed, "x_scale": scales}


def decoded(tensors: Tensors) -> torch.Tensor:
    """(tokens, hidden) fp32 of any of these."""
    x = tensors["x"]
    if x.dtype is not DType.FP8_E4M3.torch:
        return x.float()
    scale = tensors["x_scale"]
    return x.float() * scale if scale.ndim == 1 else fp8_tiles.decode(Fp8Tiles(x, scale), TILE)
