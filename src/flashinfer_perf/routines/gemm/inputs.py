"""Operands of the GEMM family: normal numbers, quantised where the product is of quantised ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8 as fp8_format
from flashinfer_perf.formats import fp8_tiles
from flashinfer_perf.formats.fp8 import Fp8Tensor
from flashinfer_perf.formats.fp8_tiles import Fp8Tiles
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm.flags import GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Problem

MEAN_SQUARE_OF_HALVED = (1 + 0.25) / 2
"""Of what tiles are multiplied by when every second one is halved."""
AT_A_TIME = 1 << 26
"""Elements that are quantised at a time; a format takes several fp32 copies of them on its way."""


def fp8(make: TensorFactory, name: str, shape: Sequence[int], dtype: DType) -> Fp8Tensor:
    """Standard normal, drawn in bfloat16 and quantised with one scale for all."""
    drawn = make.normal(name, shape, DType.BFLOAT16)
    make.reserve(f"{name}_fp8", shape, dtype)
    return fp8_format.encode_tensor(drawn, dtype)


def transposed_fp8(make: TensorFactory, name: str, shape: Sequence[int], dtype: DType) -> Fp8Tensor:
    """The same of (…, n, k), seen as (…, k, n): the way in which libraries want the second operand."""
    quantised = fp8(make, name, shape, dtype)
    return Fp8Tensor(quantised.elements.transpose(-2, -1), quantised.scale)


def tiled_fp8(
    make: TensorFactory, name: str, shape: Sequence[int], tile: tuple[int, int], std: float = 1.0
) -> Fp8Tiles:
    """(…, rows, k) normal numbers with a scale for every tile, drawn and quantised some rows at a time.

    Every second tile, by chance, is halved: the largest elements of tiles are so much alike that nearly all tiles would
    have one and the same power of two for a scale, and a kernel that takes a neighbour's would be right.
    """
    *outer, rows, k = shape
    down, across = tile
    make.reserve(name, shape, DType.FP8_E4M3)
    make.reserve(f"{name}_scale", (*outer, rows // down, k // across), DType.FLOAT32)
    count = math.prod(outer) * rows
    drawn_parts = drawn_rows(make, name, (count, k), down)
    elements = torch.empty(count, k, dtype=DType.FP8_E4M3.torch, device=make.device)
    scales = torch.empty(count // down, k // across, device=make.device)
    for part, drawn in drawn_parts:
        quantised = fp8_tiles.encode(drawn * std, tile)
        elements[part] = quantised.elements
        scales[part.start // down : part.stop // down] = quantised.scales
    halved = torch.randint(2, scales.shape, device=make.device, generator=make.generator(f"{name}_scale", make.device))
    return Fp8Tiles(elements.view(shape), torch.ldexp(scales, -halved).view(*outer, rows // down, -1))


def drawn_rows(
    make: TensorFactory, name: str, shape: tuple[int, int], step: int = 1
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Standard normal bfloat16, some rows at a time, in multiples of ``step``: nothing wide is there as a whole."""
    rows, k = shape
    size = min(max(AT_A_TIME // (k * step), 1) * step, rows)
    make.reserve(f"{name} before it is quantised", (size, k), DType.FLOAT32)
    return _draw(make, make.generator(name, make.device), shape, size)


def _draw(
    make: TensorFactory, generator: torch.Generator, shape: tuple[int, int], size: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, shape[0], size):
        part = slice(start, min(start + size, shape[0]))
        drawn = (part.stop - part.start, shape[1])
        yield part, torch.randn(drawn, dtype=torch.bfloat16, device=make.device, generator=generator)


def reserve_outputs(case: GemmFlags, make: TensorFactory, count: int = 1) -> None:
    """Counts the outputs that a backend will make, and their truth."""
    make.reserve("out", (count, case.m, case.n), case.out_dtype)
    make.reserve("out's truth", (count, case.m, case.n), DType.FLOAT32)


def room(case: GemmFlags, problem: Problem) -> torch.Tensor:
    """An output: as many rows as A (…, rows, k) has, of n columns."""
    a = problem["a"]
    return torch.empty(*a.shape[:-1], case.n, dtype=case.out_dtype.torch, device=a.device)
