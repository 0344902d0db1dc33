"""Block-scaled formats as tables of numbers: what is right is searched for, in fp64. ``formats`` computes it by
other means, so that neither is its own judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = tuple(math.ldexp(code % 8 + (8 if code >= 8 else 0), max(code // 8, 1) - 10) for code in range(127))
E8M0 = tuple(2.0 ** (code - 127) for code in range(255))
"""Numbers by their codes; what comes behind is negative or NaN, and no scale."""


@dataclass(frozen=True)
class BlockFormat:
    """Elements that share a scale, the scale's numbers by code, whether a scale is rounded up or to nearest, and the
    elements' magnitudes by code.
    """

    block: int
    numbers: tuple[float, ...]
    upwards: bool
    elements: tuple[float, ...] = E2M1

    @property
    def packed(self) -> bool:
        """Two elements to a byte."""
        return len(self.elements) <= 8

    def encode(self, wanted: torch.Tensor) -> torch.Tensor:
        """The codes of scales; of what is too large the largest."""
        if not self.upwards:
            return nearest(wanted.double(), self.numbers)
        table = torch.tensor(self.numbers, dtype=torch.float64, device=wanted.device)
        return torch.bucketize(wanted.double(), table).clamp(max=len(table) - 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """fp64 scales; NaN for a code that is none."""
        padded = (*self.numbers, *[math.nan] * (256 - len(self.numbers)))
        return torch.tensor(padded, dtype=torch.float64, device=codes.device)[codes.long()]

    def by_blocks(self, rows: torch.Tensor) -> torch.Tensor:
        """(…, n) in blocks, (…, n / block, block)."""
        return rows.unflatten(-1, (-1, self.block))

    def ranks(self, bytes_: torch.Tensor) -> torch.Tensor:
        """(…, n) bytes to ranks: elements counted from zero, which has one rank whatever its sign. (…, 2 n) where a
        byte holds two, the low half first.
        """
        sign = 0x80
        if self.packed:
            bytes_, sign = torch.stack((bytes_ % 16, bytes_ // 16), dim=-1).flatten(-2), 8
        size = (bytes_ % sign).long()
        return torch.where(bytes_ >= sign, -size, size)

    def values(self, ranks: torch.Tensor) -> torch.Tensor:
        """fp64 elements by their ranks; NaN for a rank that is none."""
        table = torch.tensor((*self.elements, math.nan), dtype=torch.float64, device=ranks.device)
        return table[ranks.abs()] * ranks.sign()

    def nearest(self, values: torch.Tensor, scale: torch.Tensor, error: float | torch.Tensor = 0.0) -> torch.Tensor:
        """Ranks of the elements nearest to values * (1 + error) / scale; 0 under a scale of 0 or one that is none."""
        quotient = (values.abs() * (1 + error) / scale).nan_to_num(nan=0.0, posinf=0.0)
        return nearest(quotient, self.elements) * values.sign().long()

    def dequantise(self, raw: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """fp64 values of bytes of elements with (…, n / block) bytes of scales, (…, n)."""
        elements = self.by_blocks(self.values(self.ranks(raw)))
        return (elements * self.decode(scales)[..., None]).flatten(-2)


NVFP4 = BlockFormat(16, E4M3, upwards=False)
MXFP4 = BlockFormat(32, E8M0, upwards=True)
MXFP8 = BlockFormat(32, E8M0, upwards=True, elements=E4M3)
FORMATS = {DType.NVFP4: NVFP4, DType.MXFP4: MXFP4}


def nearest(values: torch.Tensor, numbers: tuple[float, ...]) -> torch.Tensor:
    """Codes of the nearest of ascending numbers; of two as near the even one."""
    table = torch.tensor(numbers, dtype=torch.float64, device=values.device)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(values, middles)
    tie = values == middles[codes.clamp(max=len(middles) - 1)]
    return codes + (tie & (codes % 2 == 1)).to(codes.dtype)
