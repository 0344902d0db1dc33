"""The truth of a product: that of the dequantised operands, in fp32, a part of the rows and columns at a time.

Operands come as functions that give some of their rows in fp32, so that large quantised ones are never decoded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.lazy import torch

AT_A_TIME = 1 << 27
"""Elements of an operand that are there in fp32 at a time: 512 MiB."""

LOOKED_UP_AT_A_TIME = 1 << 22
"""Elements of a block-scaled operand: four numbers of 64 bits each, 128 MiB."""

Rows = Callable[[slice], "torch.Tensor"]
"""Some rows of an operand, (rows, k) in fp32."""


def product(a: Rows, b: Rows, into: torch.Tensor, k: int) -> torch.Tensor:
    """into (m, n) = A B^T of operands of m and n rows."""
    m, n = into.shape
    for columns in parts(n, k):
        factor = b(columns).T
        for rows in parts(m, k):
            into[rows, columns] = a(rows) @ factor
    return into


def parts(count: int, width: int) -> Iterator[slice]:
    """Slices of ``count`` rows of that width, each no more than is good to have at a time."""
    step = max(AT_A_TIME // width, 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def plain_product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> Mapping[str, torch.Tensor]:
    """Of A (m, k) and B (k, n) in 16 bits, and a bias (n,) for every row."""
    out = product(_scaled(a), _scaled(b.T), torch.empty(a.shape[0], b.shape[1], device=a.device), a.shape[1])
    return {"out": out if bias is None else out.add_(bias.float())}


def plain_products(a: torch.Tensor, b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Of A (batch, m, k) and B (batch, k, n) in 16 bits."""
    return {"out": _batched(a, b, 1.0)}


def scaled_products(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
) -> Mapping[str, torch.Tensor]:
    """Of A (batch, m, k) and B (batch, k, n), each with one scale for all."""
    return {"out": _batched(a, b, a_scale * b_scale)}


def scaled_product(a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Of A (m, k) and B (n, k), multiplied by alpha, the product of their scales."""
    into = torch.empty(len(a), len(b), device=a.device)
    return {"out": product(_scaled(a, alpha), _scaled(b), into, a.shape[1])}


def _batched(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    out = torch.empty(a.shape[0], a.shape[1], b.shape[2], device=a.device)
    for left, right, into in zip(a, b, out, strict=True):
        product(_scaled(left, scale), _scaled(right.T), into, left.shape[1])
    return out


def _scaled(operand: torch.Tensor, scale: torch.Tensor | float = 1.0) -> Rows:
    return lambda rows: operand[rows].float() * scale


def tiled(elements: torch.Tensor, scales: torch.Tensor, tile: tuple[int, int]) -> Rows:
    """Of FP8 (rows, k) with scales (tiles down, tiles across) in fp32."""
    down, across = tile

    def decoded(rows: slice) -> torch.Tensor:
        of_rows = scales[torch.arange(rows.start, rows.stop, device=scales.device) // down]
        return elements[rows].float() * of_rows.repeat_interleave(across, 1)

    return decoded


def block_scaled(elements: torch.Tensor, scales: torch.Tensor, format: BlockFormat) -> Rows:
    """Of a format with block scales, looked up in its tables: what PyTorch's backends decode by arithmetic.

    Args:
        elements: (rows, k), packed where the format is.
        scales: (rows, k / block) bytes, row by row.
    """
    raw, width = elements.view(torch.uint8), scales.shape[1] * format.block

    def decoded(rows: slice) -> torch.Tensor:
        into = torch.empty(rows.stop - rows.start, width, device=raw.device)
        step = max(LOOKED_UP_AT_A_TIME // width, 1)
        for part in zip(into.split(step), raw[rows].split(step), scales[rows].split(step), strict=True):
            part[0].copy_(format.dequantise(*part[1:]))
        return into

    return decoded
