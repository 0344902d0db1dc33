"""E8M0, the scale of the MX formats: a power of two, its exponent plus 127 in a byte."""

from __future__ import annotations

from flashinfer_perf.lazy import torch

BIAS = 127
LARGEST_FINITE = 0xFE


def encode_up(values: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not below, saturating; non-negative fp32 to bytes.

    Subnormals are flushed to zero first, as the kernels' arithmetic does; zero gives byte 0, infinity 0xFE,
    NaN 0xFF.
    """
    bits = values.view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    rounded = (exponent + ((bits & 0x7FFFFF) != 0)).clamp(max=LARGEST_FINITE)
    byte = torch.where(exponent == 0, torch.zeros_like(rounded), rounded)
    return torch.where(values.isnan(), torch.full_like(byte, 0xFF), byte).to(torch.uint8)


def decode(bytes_: torch.Tensor) -> torch.Tensor:
    """fp32 powers of two; byte 0 is 2^-127, 0xFF is NaN."""
    power = torch.ldexp(torch.ones_like(bytes_, dtype=torch.float32), bytes_.to(torch.int32) - BIAS)
    return torch.where(bytes_ == 0xFF, torch.full_like(power, float("nan")), power)


def reciprocal(bytes_: torch.Tensor) -> torch.Tensor:
    """The factor that elements are multiplied by: 2^(127 - byte) for bytes 1 … 253, and 0 for 0, 254 and 255.

    The quantisers compute it in arithmetic that flushes subnormals: 2^-127 and its like are zero there.
    """
    code = bytes_.to(torch.int32)
    power = torch.ldexp(torch.ones_like(code, dtype=torch.float32), BIAS - code)
    return torch.where((code >= 1) & (code <= 253), power, torch.zeros_like(power))
