"""What hidden states are sent as: their elements and, in the formats with block scales, those beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, fp8_tiles, nvfp4
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.ranks import Ranks

FP8_LARGEST = 448.0
FP8_TILE = (1, 128)


class Payload(NamedTuple):
    """Quantised rows.

    Attributes:
        hidden: (tokens, columns) in the input's format or e4m3, or (tokens, columns / 2) bytes for NVFP4.
        scales: (tokens, columns / 128) fp32 or (tokens, columns / 16) bytes of e4m3; None without block scales.
    """

    hidden: torch.Tensor
    scales: torch.Tensor | None = None


@dataclass(frozen=True)
class WireFormat:
    """A format of ``--quant_dtype``.

    Attributes:
        encode: rows of 16-bit floats and the global factor -> payload.
        decode: payload and the global factor -> fp32 rows.
        hidden_bytes: bytes of a row's elements, of its number of columns and the input's bytes per element.
        scale_bytes: bytes of a row's scales, of its number of columns.
        columns: what their number must be divisible by.
        factor: of the largest magnitude on any rank, the global factor: what elements are multiplied by before they
            are rounded, and divided by afterwards.
    """

    encode: Callable[[torch.Tensor, float], Payload]
    decode: Callable[[Payload, float], torch.Tensor]
    hidden_bytes: Callable[[int, float], int]
    scale_bytes: Callable[[int], int]
    columns: int
    factor: Callable[[float], float]


def _encode_tiles(rows: torch.Tensor, factor: float) -> Payload:
    return Payload(*fp8_tiles.encode(rows, FP8_TILE))


def _encode_nvfp4(rows: torch.Tensor, factor: float) -> Payload:
    return Payload(*nvfp4.encode(rows, factor))


WIRE_FORMATS: dict[str | None, WireFormat] = {
    None: WireFormat(
        encode=lambda rows, factor: Payload(rows),
        decode=lambda payload, factor: payload.hidden.float(),
        hidden_bytes=lambda columns, size: int(columns * size),
        scale_bytes=lambda columns: 0,
        columns=1,
        factor=lambda largest: 1.0,
    ),
    "fp8": WireFormat(
        encode=lambda rows, factor: Payload(fp8.encode(rows.float() * factor, DType.FP8_E4M3)),
        decode=lambda payload, factor: payload.hidden.float() / factor,
        hidden_bytes=lambda columns, size: columns,
        scale_bytes=lambda columns: 0,
        columns=1,
        factor=lambda largest: FP8_LARGEST / largest,
    ),
    "nvfp4": WireFormat(
        encode=_encode_nvfp4,
        decode=lambda payload, factor: nvfp4.decode(nvfp4.Nvfp4(*payload), factor),
        hidden_bytes=lambda columns, size: columns // 2,
        scale_bytes=lambda columns: columns // nvfp4.BLOCK,
        columns=nvfp4.BLOCK,
        factor=lambda largest: nvfp4.LARGEST / largest,
    ),
    "fp8_block_scale": WireFormat(
        encode=_encode_tiles,
        decode=lambda payload, factor: fp8_tiles.decode(fp8_tiles.Fp8Tiles(*payload), FP8_TILE),
        hidden_bytes=lambda columns, size: columns,
        scale_bytes=lambda columns: 4 * columns // FP8_TILE[1],
        columns=FP8_TILE[1],
        factor=lambda largest: 1.0,
    ),
}


def global_factor(format: WireFormat, hidden: torch.Tensor, ranks: Ranks) -> float:
    """One for all ranks, from the largest magnitude that any of them has: with a larger one, that would saturate."""
    largest = max(ranks.all_gather(float(hidden.abs().amax())))
    return format.factor(largest) if largest else 1.0
