"""What the documents' -vv lines say of a quantiser's outputs. They judge nothing; the checks do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flashinfer_perf.checks.tolerance import ROUND_TRIP
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.quantization.encoding import SF, X_Q, Encoding

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs

ELEMENTS_AT_A_TIME = 1 << 22
"""Decoded at a time: six fp64 numbers each, 200 MiB."""


def shapes(backend: str, outputs: Outputs) -> Iterator[str]:
    """Shape and format of both outputs."""
    parts = [f"{name}.{what} = {getattr(outputs[name], what)}" for name in (X_Q, SF) for what in ("shape", "dtype")]
    yield f"Backend {backend}: {', '.join(parts)}"


def shapes_and_round_trip(backend: str, outputs: Outputs, *, x: torch.Tensor, encoding: Encoding) -> Iterator[str]:
    """The same, and how many elements are far from the input when they are decoded; x is (m, k)."""
    yield from shapes(backend, outputs)
    scales = encoding.placed.scale_bytes(SF, outputs[SF], torch.empty(encoding.scales_shape, device="meta"))
    if isinstance(scales, Finding) or outputs[X_Q].shape != encoding.x_q_shape:
        return  # it cannot be decoded; the check says why
    far, elements = _far(x, outputs[X_Q].view(torch.uint8), scales, encoding), x.numel()
    yield f"Round-trip error: {far}/{elements} ({100 * far / elements:.2f}%) elements differ"


def _far(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, encoding: Encoding) -> int:
    """Of MX formats: (m, k) and bytes in its order."""
    rows = max(ELEMENTS_AT_A_TIME // x.shape[-1], 1)
    parts = zip(*(tensor.split(rows) for tensor in (x, codes, scales)), strict=True)
    return sum(int(_count(encoding, *part)) for part in parts)


def _count(encoding: Encoding, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    decoded = encoding.format.dequantise(codes, scales)
    near = (x.double() - decoded).abs() <= ROUND_TRIP * (1 + decoded.abs())  # false for NaN
    return (~near).sum()
