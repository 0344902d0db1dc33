"""Number formats by the names that the command line uses."""

from __future__ import annotations

import enum
from typing import Any


class DType(str, enum.Enum):
    """A number format; its value is its spelling on the command line, in the CSV and in the case id."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"

    @property
    def torch(self) -> Any:
        """The torch dtype that stores it. The FP4 formats are packed, two elements to a byte, in uint8."""
        import torch

        return getattr(torch, _TORCH_NAMES[self])

    @property
    def bits(self) -> int:
        """Bits of one element, block scales not counted."""
        return _BITS[self]

    @property
    def bytes(self) -> float:
        """Bytes of one element; a half for the FP4 formats."""
        return self.bits / 8

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)


_BITS = {
    DType.FLOAT64: 64,
    DType.FLOAT32: 32,
    DType.FLOAT16: 16,
    DType.BFLOAT16: 16,
    DType.FP8_E4M3: 8,
    DType.FP8_E5M2: 8,
    DType.NVFP4: 4,
    DType.MXFP4: 4,
}

_TORCH_NAMES = {
    DType.FLOAT64: "float64",
    DType.FLOAT32: "float32",
    DType.FLOAT16: "float16",
    DType.BFLOAT16: "bfloat16",
    DType.FP8_E4M3: "float8_e4m3fn",
    DType.FP8_E5M2: "float8_e5m2",
    DType.NVFP4: "uint8",
    DType.MXFP4: "uint8",
}
