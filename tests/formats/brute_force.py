"""Rounding by search: slow, obvious, and independent of the bit tricks that it checks."""

from __future__ import annotations

import math
from fractions import Fraction

import torch


def all_16_bit(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit format, infinities and NaN included."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def nearest_even(values: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """The index of the nearest magnitude to each |value| (no NaN), of two equally near ones the even index.

    What is larger than all goes to the last.
    """
    size = values.double().abs().clamp(max=float(magnitudes[-1]))
    distance = (size[:, None] - magnitudes.double()).abs()
    nearest = distance == distance.amin(dim=1, keepdim=True)
    index = torch.arange(len(magnitudes))
    return torch.where(nearest, index + len(index) * (index % 2), 2 * len(index)).argmin(dim=1)


def e4m3_magnitudes() -> torch.Tensor:
    """The 127 finite magnitudes of E4M3 by code, fp64: 4 exponent bits, bias 7, 3 mantissa bits."""
    values = []
    for code in range(127):
        exponent, mantissa = divmod(code, 8)
        values.append(mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))
    return torch.tensor(values, dtype=torch.float64)


def smallest_exponent(amax: torch.Tensor, largest: int, least: int) -> torch.Tensor:
    """The smallest e from ``least`` on with largest * 2^e >= amax, looked up among all; fp64 holds each exactly."""
    bounds = largest * 2.0 ** torch.arange(least, 128, dtype=torch.float64)
    return torch.bucketize(amax.double(), bounds) + least


def smallest_power_byte(amax: torch.Tensor, largest: int) -> torch.Tensor:
    """The E8M0 byte of the smallest power of two not below amax / largest; 0 where that would be subnormal in fp32."""
    vanishes = amax.double() < largest * 2.0**-126
    return torch.where(vanishes, 0, smallest_exponent(amax, largest, -126) + 127)


def mx_block(values: list[float], largest: int, magnitudes: torch.Tensor) -> tuple[int, list[int]]:
    """Scale byte and element codes (sign in the bit above the magnitude's) of one MX block of finite numbers."""
    byte = int(smallest_power_byte(torch.tensor(max(map(abs, values)), dtype=torch.float64), largest))
    sizes = [Fraction(abs(value)) / Fraction(2) ** (byte - 127) if 0 < byte < 254 else Fraction(0) for value in values]
    sign = len(magnitudes) + len(magnitudes) % 2  # 8 for E2M1, 128 for E4M3
    steps = [Fraction(float(magnitude)) for magnitude in magnitudes]
    codes = [min(range(len(steps)), key=lambda code: (abs(steps[code] - size), code % 2)) for size in sizes]
    return byte, [code + sign * (math.copysign(1, value) < 0) for code, value in zip(codes, values, strict=True)]


def place_of(layout: str, row: int, column: int, rows: int, columns: int) -> int:
    """The documented byte of a scale, counted from the start of its batch entry."""
    if layout == "linear":
        return row * columns + column
    across = -(-columns // 4)
    if layout == "8x4":
        return (row // 8 * across + column // 4) * 32 + row % 8 * 4 + column % 4
    tile = row // 128 * across + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
