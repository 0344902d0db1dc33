"""E4M3 with a scale for every tile of a matrix: groups of a row, 1 x T, for activations; blocks, T x T, for weights.

Scales are powers of two, the smallest that bring a tile's largest element to 448 or below, rather than amax / 448:
dividing and multiplying by them is exact, so that every device gives the same codes and an element times its scale
is the decoded value without another rounding. Where elements are normal numbers, nothing is lost by it: the relative
precision of E4M3 does not depend on the scale. What is lost is at most one of the 15 powers of two of its range.
FlashInfer's benchmarks take powers of two as well, but add 1e-8 to the divisor.
"""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from flashinfer_perf.lazy import torch

LARGEST = 448.0
SMALLEST_EXPONENT = -126
"""Of a scale: a normal number in fp32, and its reciprocal too."""


class Fp8Tiles(NamedTuple):
    elements: torch.Tensor
    """(…, rows, columns) in float8_e4m3fn."""
    scales: torch.Tensor
    """(…, tiles down, tiles across) in fp32."""


def encode(values: torch.Tensor, tile: tuple[int, int]) -> Fp8Tiles:
    """Quantises (…, rows, columns) of floats.

    NaN and infinities are not seen by a tile's maximum; NaN stays, infinities saturate. A tile of zeros has scale 1.

    Args:
        tile: rows and columns that share a scale; the last tiles may be smaller.
    """
    wide = values.float()
    finite = torch.where(wide.isfinite(), wide.abs(), torch.zeros_like(wide))
    scales = _smallest_power(_largest(finite, tile))
    return Fp8Tiles(fp8.encode(wide / _spread(scales, tile, wide.shape), DType.FP8_E4M3), scales)


def decode(quantised: Fp8Tiles, tile: tuple[int, int]) -> torch.Tensor:
    """fp32 values, (…, rows, columns)."""
    elements = quantised.elements.float()
    return elements * _spread(quantised.scales, tile, elements.shape)


def _largest(sizes: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    rows, columns = sizes.shape[-2:]
    padded = torch.nn.functional.pad(sizes, (0, -columns % tile[1], 0, -rows % tile[0]))
    return padded.unflatten(-1, (-1, tile[1])).unflatten(-3, (-1, tile[0])).amax(dim=(-3, -1))


def _smallest_power(largest: torch.Tensor) -> torch.Tensor:
    """largest = f * 2^e with f in [1/2, 1), and 448 = 7/8 * 2^9: no division, no logarithm, so that it is exact."""
    fraction, exponent = torch.frexp(largest)
    exponent = (exponent - 9 + (fraction > LARGEST / 512).to(exponent.dtype)).clamp(min=SMALLEST_EXPONENT)
    power = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(largest == 0, torch.ones_like(power), power)


def _spread(scales: torch.Tensor, tile: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """A scale for every element."""
    rows, columns = shape[-2:]
    return scales.repeat_interleave(tile[0], -2)[..., :rows, :].repeat_interleave(tile[1], -1)[..., :columns]
