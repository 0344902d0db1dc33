"""What a fused mixture may be asked for."""

from __future__ import annotations

import torch

from flashinfer_perf.kernels.moe.activations import ACTIVATIONS
from flashinfer_perf.kernels.moe.tuning import Capability, HopperTiles, Tiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

HOPPER = (9, 0)


def check_options(
    weights: ExpertWeights,
    num_tokens: int,
    top_k: int,
    num_experts: int,
    dtype: torch.dtype,
    activation: str,
    expert_offset: int,
) -> None:
    """Raises ValueError for options of ``TritonExperts`` that are not so."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}: give one of {', '.join(ACTIVATIONS)}")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}: give bfloat16 or float16")
    weights.check_dtype(dtype)
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k}: give 1 to {num_experts}, the number of experts")
    if num_tokens < 0:
        raise ValueError(f"num_tokens is {num_tokens}: give 0 or more")
    if not 0 <= expert_offset <= num_experts - weights.num_experts:
        raise ValueError(
            f"expert_offset is {expert_offset}, of {weights.num_experts} experts here and {num_experts} in all: "
            f"give 0 to {num_experts - weights.num_experts}"
        )


def check_static(name: str, scale: torch.Tensor | None, weights: ExpertWeights) -> None:
    """Raises ValueError for a scale that is none of a whole tensor."""
    if scale is None:
        return
    if weights.format not in (ExpertFormat.FP8_TENSOR, ExpertFormat.FP8_CHANNEL):
        raise ValueError(f"{name} is given, but {weights.format.value} has no scale of a whole tensor: leave it out")
    if tuple(scale.shape) != (1,) or scale.dtype != torch.float32:
        raise ValueError(f"{name} is {tuple(scale.shape)} of {scale.dtype}: give one fp32, (1,)")


def check_tiles(tiles: Tiles | HopperTiles, format: ExpertFormat, capability: Capability) -> None:
    """Raises ValueError for tiles that the GPU or the format has no kernel for."""
    if isinstance(tiles, Tiles):
        return
    if capability != HOPPER or format is ExpertFormat.NVFP4:
        found = f"{format.value} on compute capability {'.'.join(map(str, capability))}"
        raise ValueError(f"tiles are HopperTiles for {found}: give them for FP8 or 16 bits on 9.0, Tiles otherwise")
    wide = tiles.parts == 2 and format is not ExpertFormat.FP8_BLOCK
    allowed = (128, 256) if wide else (128,)
    if tiles.parts not in (2, 3) or {tiles.first.columns, tiles.second.columns} - set(allowed):
        columns = " or ".join(map(str, allowed))
        raise ValueError(f"tiles are {tiles}: give 2 or 3 parts and columns of {columns} for {format.value}")
