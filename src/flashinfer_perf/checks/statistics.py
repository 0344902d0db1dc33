"""Numbers about two tensors that ought to be equal."""

from __future__ import annotations

from flashinfer_perf.core.record import TensorStatistics
from flashinfer_perf.lazy import torch


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| over all elements; 0 for two zero tensors."""
    difference, size = float((actual - expected).norm()), float(expected.norm())
    if difference == 0:
        return 0.0
    return difference / size if size else float("inf")


def worst_row_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative L2 norm of the difference along the last dimension; NaN if any is."""
    difference, size = (actual - expected).norm(dim=-1), expected.norm(dim=-1)
    ratio = torch.where(difference == 0, torch.zeros_like(size), difference / size)
    return float(ratio.max()) if ratio.numel() else 0.0


def cosine(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Cosine of the angle between two tensors; 1 for two zero tensors."""
    product = float(actual.norm()) * float(expected.norm())
    if product == 0:
        return 1.0 if float((actual - expected).norm()) == 0 else 0.0
    return float((actual * expected).sum()) / product


def describe(tensor: torch.Tensor, index: tuple[int, ...]) -> TensorStatistics:
    """Minimum, maximum, mean, standard deviation, and the element at an index."""
    return TensorStatistics(
        minimum=float(tensor.min()),
        maximum=float(tensor.max()),
        mean=float(tensor.mean()),
        std=float(tensor.std(correction=0)),
        worst=float(tensor[index]),
    )


def unravel(position: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of an element from its position in the flattened tensor."""
    index = []
    for size in reversed(shape):
        position, remainder = divmod(position, size)
        index.append(remainder)
    return tuple(reversed(index))
