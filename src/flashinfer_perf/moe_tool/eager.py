"""The contestants in PyTorch: tokens grouped by expert, weights dequantised as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from flashinfer_perf.formats.e2m1 import decode, unpack
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.eager import sorted_by_expert


def experts_fp8(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    per_token: bool,
) -> None:
    """FP8 weights, with activations rounded to FP8 before either product: one scale for a product's whole input, or one
    for each token.
    """

    def product(values: torch.Tensor, elements: torch.Tensor, scale: torch.Tensor, counts: list[int]) -> torch.Tensor:
        rounded = _rounded_to_fp8(values, per_token)
        return _grouped(rounded, lambda expert: elements[expert].float() * scale[expert].unsqueeze(-1), counts)

    _mixture(
        x,
        experts,
        weights,
        output,
        len(w1),
        lambda values, counts: product(values, w1, w1_scale, counts),
        lambda values, counts: product(values, w2, w2_scale, counts),
    )


def experts_nvfp4(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w1_global: torch.Tensor,
    w2_global: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """NVFP4 weights, activations in the input's format."""

    def product(values: torch.Tensor, counts: list[int], *weight: torch.Tensor) -> torch.Tensor:
        return _grouped(values, lambda expert: _from_nvfp4(*(part[expert] for part in weight)), counts)

    _mixture(
        x,
        experts,
        weights,
        output,
        len(w1),
        lambda values, counts: product(values, counts, w1, w1_scale, w1_global),
        lambda values, counts: product(values, counts, w2, w2_scale, w2_global),
    )


def _mixture(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    held: int,
    first: Callable[[torch.Tensor, list[int]], torch.Tensor],
    second: Callable[[torch.Tensor, list[int]], torch.Tensor],
) -> None:
    """Brings each expert's rows together, and adds up what comes out by token."""
    order, counts = sorted_by_expert(experts, range(held))
    token = order // experts.shape[1]
    up, gate = first(x[token], counts).chunk(2, dim=-1)
    given = second((torch.nn.functional.silu(gate) * up).to(x.dtype), counts)
    weighted = given * weights.flatten()[order].unsqueeze(-1)
    output.copy_(torch.zeros(output.shape, device=output.device).index_add_(0, token, weighted))


def _grouped(values: torch.Tensor, weight: Callable[[int], torch.Tensor], counts: list[int]) -> torch.Tensor:
    """Each group of rows times its expert's weight, in fp32."""
    return torch.cat(list(_products(values.float(), weight, counts)))


def _products(values: torch.Tensor, weight: Callable[[int], torch.Tensor], counts: list[int]) -> Iterator[torch.Tensor]:
    for expert, rows in enumerate(values.split(counts)):
        if len(rows):
            yield torch.nn.functional.linear(rows, weight(expert))


def _rounded_to_fp8(values: torch.Tensor, per_token: bool) -> torch.Tensor:
    largest = values.abs().amax(dim=-1, keepdim=True) if per_token else values.abs().amax()
    scale = largest.float().clamp(min=torch.finfo(torch.float32).tiny) / fp8.LARGEST[DType.FP8_E4M3]
    return fp8.encode(values.float() / scale, DType.FP8_E4M3).float() * scale


def _from_nvfp4(packed: torch.Tensor, scale: torch.Tensor, overall: torch.Tensor) -> torch.Tensor:
    elements = decode(unpack(packed)).unflatten(-1, (scale.shape[-1], -1))
    return (elements * (scale.view(torch.float8_e4m3fn).float() / overall).unsqueeze(-1)).flatten(-2)
