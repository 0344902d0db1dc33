"""Our FP8 products beside the product of the decoded operands in fp32."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from flashinfer_perf.formats import fp8_tiles
from flashinfer_perf.kernels.gemm_fp8_groupwise import gemm_fp8_groupwise
from flashinfer_perf.kernels.gemm_fp8_tuning import GemmTiling


class Product(NamedTuple):
    offsets: tuple[int, ...]
    """Of groups of rows."""
    n: int
    k: int
    mode: str
    tiles: GemmTiling | None = None
    dtype: torch.dtype = torch.float32
    spoilt: bool = False
    """One scale is changed behind the kernel's back, which must show."""


def relative_error(product: Product, device: str) -> float:
    """L2 norm of the error over that of the truth; NaN where something was not written."""
    make = torch.Generator().manual_seed(product.n + product.k)
    rows, groups = product.offsets[-1], len(product.offsets) - 1
    a = fp8_tiles.encode(torch.randn(rows, product.k, generator=make).to(device), (1, 128))
    b = fp8_tiles.encode(torch.randn(groups, product.n, product.k, generator=make).to(device), (128, 128))
    left, right = fp8_tiles.decode(a, (1, 128)), fp8_tiles.decode(b, (128, 128))
    truth = torch.cat([left[i:j] @ right[g].T for g, (i, j) in enumerate(pairwise(product.offsets))])
    if product.spoilt:
        a.scales[-1, -1] *= 4
    out = torch.full(truth.shape, float("nan"), dtype=product.dtype, device=device)
    _multiply(product, a, b, out)
    return float((out.float() - truth).norm() / truth.norm())


def _multiply(product: Product, a: fp8_tiles.Fp8Tiles, b: fp8_tiles.Fp8Tiles, out: torch.Tensor) -> None:
    a_scale, b_scale = (_in_mode(scales, product.mode) for scales in (a.scales, b.scales))
    offsets = torch.tensor(product.offsets, dtype=torch.int32, device=out.device)
    operands = (a.elements, b.elements, a_scale, b_scale, offsets)
    gemm_fp8_groupwise(*operands, out, product.mode, tiles=product.tiles)


def _in_mode(scales: torch.Tensor, mode: str) -> torch.Tensor:
    return scales if mode == "K" else scales.transpose(-1, -2).contiguous()
