"""The mathematics of the quantisers, in fp64 and independent of ``formats``: searched, not computed by bit tricks."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.formats.e2m1 import MAGNITUDES
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.lazy import torch

BLOCK = 32
SMALLEST_NORMAL = 2.0**-126
ROWS_AT_A_TIME = 1 << 20
"""Elements searched at a time: eight fp64 distances each, 64 MiB."""


def mxfp4(x: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The MXFP4 encoding of (m, k) finite 16-bit floats; see OCP Microscaling Formats 1.0, section 6.3.

    The scale is the smallest power of two not below amax / 6, and zero (byte 0, all elements zero) when that would
    be subnormal in fp32. Elements are the nearest magnitudes, ties to the even code.

    Returns:
        packed (m, k / 2) bytes; scales in 128x4 tiles, (m rounded up to 128, k / 32 rounded up to 4) bytes.
    """
    blocks = x.reshape(-1, BLOCK)
    parts = [_encode(part.double()) for part in blocks.split(max(ROWS_AT_A_TIME // BLOCK, 1))]
    codes = torch.cat([codes for codes, _ in parts]).reshape(x.shape)
    scales = torch.cat([scales for _, scales in parts]).reshape(x.shape[0], -1)
    packed = codes[:, 0::2] + 16 * codes[:, 1::2]
    return {"packed": packed.to(torch.uint8), "scales": swizzle_128x4(scales.to(torch.uint8))}


def _encode(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wanted = blocks.abs().amax(dim=1, keepdim=True) / 6
    fraction, exponent = torch.frexp(wanted)
    exponent = exponent - (fraction == 0.5).to(exponent.dtype)
    vanishes = wanted < SMALLEST_NORMAL
    scaled = torch.where(vanishes, torch.zeros_like(blocks), torch.ldexp(blocks, -exponent))
    magnitudes = torch.tensor(MAGNITUDES, dtype=torch.float64, device=blocks.device)
    distance = (scaled.abs()[..., None] - magnitudes).abs()
    nearest = distance.amin(dim=-1, keepdim=True)
    rank = torch.where(distance == nearest, torch.tensor([0, 8, 1, 9, 2, 10, 3, 11], device=blocks.device), 99)
    codes = rank.argmin(dim=-1) + 8 * torch.signbit(blocks)
    return codes, torch.where(vanishes, torch.zeros_like(exponent), exponent + 127)
