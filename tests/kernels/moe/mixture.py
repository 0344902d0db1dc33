"""Our fused mixtures beside fp32 mathematics over the decoded weights, with the roundings that the format says."""

from __future__ import annotations

from typing import NamedTuple

import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, fp8_tiles, nvfp4
from flashinfer_perf.kernels.moe.activations import GATED
from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.kernels.moe.tuning import Tiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

STATIC = 0.03
"""A scale that is given: 448 times it is beyond all but a few of the inputs."""
BLOCK = (128, 128)


class Mixture(NamedTuple):
    format: ExpertFormat
    activation: str = "Swiglu"
    tokens: int = 7
    experts: int = 8
    top_k: int = 3
    hidden: int = 256
    intermediate: int = 128
    offset: int = 0
    local: int = 0
    """Experts that are here; 0 means all."""
    dtype: torch.dtype = torch.bfloat16
    static: bool = False
    per_token: bool | None = None
    on_input: bool = False
    quantised: bool = False
    """x comes in FP8."""
    busy: int = 0
    """Experts that all tokens go to, if not 0, so that the others are idle."""
    loads: tuple[int, ...] = ()
    """Tokens of each expert, if given, in the order of experts; of one expert each."""
    tiles: Tiles | None = None
    calls: int = 1
    """More find the workspaces as the first one left them."""
    spoilt: bool = False
    """One scale, or one weight, is changed behind the kernel's back, which must show."""


class Encoded(NamedTuple):
    elements: torch.Tensor
    scale: torch.Tensor | None
    global_scale: torch.Tensor | None
    values: torch.Tensor
    """What they mean, fp32."""


class Made(NamedTuple):
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    experts: ExpertWeights
    w1: torch.Tensor
    w2: torch.Tensor


def relative_error(mixture: Mixture, device: str = "cpu") -> float:
    """L2 norm of the error over that of the truth; NaN where something was not written."""
    made = make(mixture, device)
    x, x_values, x_scale = quantised_input(mixture, made.x)
    truth = expected(mixture, made, x_values)
    if mixture.spoilt:
        _spoil(made.experts)
    static = torch.tensor([STATIC], device=device) if mixture.static else None
    run = TritonExperts(
        made.experts,
        num_tokens=mixture.tokens,
        top_k=mixture.top_k,
        num_experts=mixture.experts,
        dtype=mixture.dtype,
        activation=mixture.activation,
        expert_offset=mixture.offset,
        input_scale=static,
        intermediate_scale=static,
        per_token=mixture.per_token,
        scales_on_input=mixture.on_input,
        tiles=mixture.tiles,
    )
    out = torch.full_like(made.x, float("nan"))
    for _ in range(mixture.calls):
        run(x, made.ids, made.weights, out, x_scale=x_scale)
    return float((out.float() - truth).norm() / truth.norm())


def make(mixture: Mixture, device: str) -> Made:
    generator = torch.Generator().manual_seed(mixture.tokens + mixture.hidden)
    normal = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
    local, parts = mixture.local or mixture.experts, 2 if mixture.activation in GATED else 1
    first = encode(mixture.format, normal(local, parts * mixture.intermediate, mixture.hidden) / 8, mixture.dtype)
    second = encode(mixture.format, normal(local, mixture.hidden, mixture.intermediate) / 8, mixture.dtype)
    experts = ExpertWeights(
        mixture.format,
        first.elements,
        second.elements,
        first.scale,
        second.scale,
        first.global_scale,
        second.global_scale,
    )
    ids = chosen_experts(mixture, generator)
    weights = torch.rand(mixture.tokens, mixture.top_k, generator=generator)
    x = normal(mixture.tokens, mixture.hidden).to(mixture.dtype)
    return Made(x, ids.to(torch.int32).to(device), weights.to(device), experts, first.values, second.values)


def chosen_experts(mixture: Mixture, generator: torch.Generator) -> torch.Tensor:
    if mixture.loads:
        return torch.arange(mixture.experts).repeat_interleave(torch.tensor(mixture.loads))[:, None]
    chosen = mixture.busy or mixture.experts
    return torch.stack([torch.randperm(chosen, generator=generator)[: mixture.top_k] for _ in range(mixture.tokens)])


def encode(format: ExpertFormat, values: torch.Tensor, dtype: torch.dtype) -> Encoded:
    """(experts, rows, columns) in a format."""
    if format is ExpertFormat.BF16:
        return Encoded(values.to(dtype), None, None, values.to(dtype).float())
    if format is ExpertFormat.FP8_BLOCK:
        tiled = fp8_tiles.encode(values, BLOCK)
        return Encoded(tiled.elements, tiled.scales, None, fp8_tiles.decode(tiled, BLOCK))
    if format is ExpertFormat.NVFP4:
        scales = nvfp4.LARGEST / values.abs().amax(dim=(1, 2))
        coded = [nvfp4.encode(matrix, scale) for matrix, scale in zip(values, scales, strict=True)]
        decoded = torch.stack([nvfp4.decode(*pair) for pair in zip(coded, scales, strict=True)])
        packed, blocks = (torch.stack(parts) for parts in zip(*coded, strict=True))
        return Encoded(packed, blocks, scales, decoded)
    axes = (1, 2) if format is ExpertFormat.FP8_TENSOR else 2
    scale = values.abs().amax(dim=axes) / fp8.LARGEST[DType.FP8_E4M3]
    spread = scale.reshape(*scale.shape, *(1,) * (3 - scale.dim()))
    elements = fp8.encode(values / spread, DType.FP8_E4M3)
    return Encoded(elements, scale, None, elements.float() * spread)


def quantised_input(mixture: Mixture, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x as it is given, as the first product must take it, and its scale if that is given with it."""
    if not mixture.format.fp8:
        return x, x.float(), None
    elements, scale = to_fp8(mixture, x.float())
    values = elements.float() * spread_scale(scale, x)
    if not mixture.quantised:
        return x, values, None
    return elements, values, None if mixture.static else scale.squeeze(-1) if scale.shape[-1] == 1 else scale


def to_fp8(mixture: Mixture, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as the mixture's activations are quantised, and (rows or 1, blocks or 1) scales."""
    blocks = values.unflatten(-1, (-1, 128)) if mixture.format is ExpertFormat.FP8_BLOCK else values[:, None]
    largest = blocks.abs().amax(dim=-1)
    per_token = mixture.format is ExpertFormat.FP8_CHANNEL if mixture.per_token is None else mixture.per_token
    if mixture.format is not ExpertFormat.FP8_BLOCK and not per_token:
        largest = largest.amax(dim=0, keepdim=True)
    scale = (largest / 448.0).clamp(min=torch.finfo(torch.float32).tiny)
    if mixture.static:
        scale = torch.full_like(scale, STATIC)
    return fp8.encode(values / spread_scale(scale, values), DType.FP8_E4M3), scale


def spread_scale(scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return scale.repeat_interleave(values.shape[-1] // scale.shape[-1], -1)


def expected(mixture: Mixture, made: Made, x: torch.Tensor) -> torch.Tensor:
    """In fp32 but for the intermediate values, which are rounded."""
    local = made.ids - mixture.offset
    tokens, slots = ((local >= 0) & (local < len(made.w1))).nonzero(as_tuple=True)
    weights = made.weights[tokens, slots][:, None]
    experts = local[tokens, slots]
    products = _by_expert(made.w1, x[tokens], experts)
    inner = activated(mixture, products * weights if mixture.on_input else products)
    results = _by_expert(made.w2, rounded(mixture, inner), experts)
    results = results if mixture.on_input else results * weights
    return torch.zeros_like(x).index_add(0, tokens, results)


def _by_expert(matrices: torch.Tensor, rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Each row times the matrix of its expert."""
    products = rows.new_empty(len(rows), matrices.shape[1])
    for expert, matrix in enumerate(matrices):
        products[experts == expert] = rows[experts == expert] @ matrix.T
    return products


def activated(mixture: Mixture, products: torch.Tensor) -> torch.Tensor:
    functional = torch.nn.functional
    if mixture.activation in GATED:
        up, gate = products.chunk(2, dim=-1)
        return up * (functional.gelu(gate) if mixture.activation == "Geglu" else functional.silu(gate))
    alone = {
        "Gelu": functional.gelu,
        "Relu": functional.relu,
        "Silu": functional.silu,
        "Relu2": lambda z: functional.relu(z) ** 2,
        "Identity": lambda z: z,
    }
    return alone[mixture.activation](products)


def rounded(mixture: Mixture, inner: torch.Tensor) -> torch.Tensor:
    """To 16 bits, and in FP8 formats to FP8; by a scale that is given without the step between."""
    if not mixture.format.fp8:
        return inner.to(mixture.dtype).float()
    elements, scale = to_fp8(mixture, inner if mixture.static else inner.to(mixture.dtype).float())
    return elements.float() * spread_scale(scale, inner)


def _spoil(experts: ExpertWeights) -> None:
    changed = experts.w2 if experts.w2_scale is None else experts.w2_scale
    if changed.dtype == torch.uint8:
        changed.bitwise_and_(0x6F)
    else:
        changed.view(-1)[: changed.numel() // 2] *= 2
