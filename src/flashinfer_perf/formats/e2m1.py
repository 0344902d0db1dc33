"""E2M1, the element of the FP4 formats: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign, two to a byte."""

from __future__ import annotations

from flashinfer_perf.lazy import torch

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Between neighbouring magnitudes; a value on one goes to the even code."""
LARGEST = 6.0


def encode(values: torch.Tensor) -> torch.Tensor:
    """Codes 0 … 15 of fp32 values: to nearest, ties to the even code, saturating; NaN becomes +6 (code 7).

    The sign of zero is kept, as the hardware's conversion does.
    """
    size = values.abs()
    code = torch.zeros_like(values, dtype=torch.uint8)
    for below, tie in enumerate(TIES):
        code += size > tie if below % 2 == 0 else size >= tie
    code += torch.signbit(values).to(torch.uint8) << 3
    return torch.where(values.isnan(), torch.full_like(code, 7), code)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """fp32 values of codes 0 … 15."""
    table = torch.tensor(MAGNITUDES + tuple(-size for size in MAGNITUDES), device=codes.device)
    return table[codes.long()]


def pack(codes: torch.Tensor) -> torch.Tensor:
    """(…, n) codes to (…, n / 2) bytes; the even element is in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """(…, n) bytes to (…, 2 n) codes."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
