"""What the FP8 products with a scale for every tile share: 1 x T elements of A, T x T of B.

out[i, j] = sum over tiles t of k: scaleA[i, t] * scaleB[j // T, t] * (dot product of the tiles' codes), accumulated in
fp32 from tile to tile. A group has rows of A and a B of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.requirement import capability, capability_in, case_rule, on_generations
from flashinfer_perf.core.routine import Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.gemm import backends, inputs, reference
from flashinfer_perf.routines.gemm.flags import GemmFlags
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Shown

TILE = 128
"""The tile of every kernel; other sizes are for PyTorch's backend only."""
GRANULARITY = (1, TILE, TILE)
"""Rows of A, rows of B and elements along k that share a scale, as FlashInfer takes it."""
PADDED_TILES = 4
"""cuBLAS reads B's scales with the tiles along k fastest, padded to a multiple of so many."""

RULES = (
    Rule(lambda case: case.k % case.tile_size == 0, "tile_size ({tile_size}) must divide k ({k})"),
    Rule(lambda case: case.n % case.tile_size == 0, "tile_size ({tile_size}) must divide n ({n})"),
)

whole_quads = case_rule(
    "m divisible by 4",
    lambda case: case.m % 4 == 0,
    "the kernel reads the scales of 4 rows at a time (16 bytes): m must be divisible by 4",
)
whole_quads_above_32 = on_generations(
    (10,),
    case_rule(
        "m divisible by 4, or up to 32",
        lambda case: case.m % 4 == 0 or case.m <= 32,
        "above 32 rows the kernel reads the scales of 4 at a time (16 bytes): m must be divisible by 4",
    ),
)
CUBLAS = (
    capability_in("9.0"),
    backends.block_scales,
    backends.cuda_toolkit("12.9"),
    backends.tiles_of_128,
    whole_quads,
)
"""cuBLAS's own product with such scales. m was tried on an H100: 1, 2, 3, 5, 6 and 17 rows are refused."""
TRITON = (capability(minimum="8.9"), triton_installed, backends.tiles_of_128)


def operands(case: GemmFlags, make: TensorFactory, groups: int | None = None) -> dict[str, torch.Tensor]:
    """A and B with their scales, as FlashInfer's functions take them.

    Args:
        groups: None for a product without groups: then a is (m, k) and b (n, k), with groups a is (groups * m, k),
            rows of a group after those of the one before, and b (groups, n, k).

    Returns:
        a and b in e4m3; a_scale and b_scale in fp32, contiguous: (rows, tiles along k) with ``scale_major_mode`` K,
        (tiles along k, rows) with MN. Tiles of A have a standard deviation of 1 or 1/2, those of B of 1 / sqrt(k) or
        half of that, so that outputs have 5/8.
    """
    tile, outer = case.tile_size, () if groups is None else (groups,)
    a, a_scale = inputs.tiled_fp8(make, "a", ((groups or 1) * case.m, case.k), (1, tile))
    b, b_scale = inputs.tiled_fp8(make, "b", (*outer, case.n, case.k), (tile, tile), std=1 / math.sqrt(case.k))
    return {"a": a, "b": b, "a_scale": laid_out(a_scale, case), "b_scale": laid_out(b_scale, case)}


def laid_out(scales: torch.Tensor, case: GemmFlags) -> torch.Tensor:
    """(…, rows, tiles along k) as it is, or transposed."""
    return scales if case.scale_major_mode == "K" else scales.transpose(-2, -1).contiguous()


def by_row(scales: torch.Tensor, mode: str) -> torch.Tensor:
    """A view (…, rows, tiles along k) of scales in either mode."""
    return scales if mode == "K" else scales.transpose(-2, -1)


def shown(made: Mapping[str, torch.Tensor]) -> tuple[Shown, ...]:
    """The documented lines: operands before and after they are quantised, which does not change their shapes."""
    names = {"a_val": "a", "b_val": "b", "a_fp8": "a", "b_fp8": "b", "a_scale": "a_scale", "b_scale": "b_scale"}
    return tuple(Shown(f"{label}.shape", made[name].shape) for label, name in names.items())


def check(case: GemmFlags, groups: int = 1) -> Close:
    """Kernels add what a tile gives in fp32."""
    return tolerance.for_product(
        case.k,
        case.out_dtype,
        operand_bits=8,
        rms=inputs.MEAN_SQUARE_OF_HALVED / math.sqrt(case.k),
        outputs=groups * case.m * case.n,
        promoted_every=case.tile_size,
    )


def truth(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, *, tile: int, mode: str
) -> torch.Tensor:
    """(m, n) of one group, in fp32."""
    rows = reference.tiled(a, by_row(a_scale, mode), (1, tile))
    columns = reference.tiled(b, by_row(b_scale, mode), (tile, tile))
    return reference.product(rows, columns, torch.empty(len(a), len(b), device=a.device), a.shape[1])


def dequantised(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor, tile: int
) -> None:
    """out (m, n) = A B^T in fp32; scales are (rows, tiles along k)."""
    left = a.float() * a_scale.repeat_interleave(tile, 1)
    right = b.float() * b_scale.repeat_interleave(tile, 0).repeat_interleave(tile, 1)
    out.copy_(left @ right.T)


def for_cublas(case: GemmFlags, made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The scales in cuBLAS's layout, which a quantiser for it would write: of A (rows, tiles along k) with the rows
    fastest, of B (…, tiles along k padded to fours, tiles along n) with the tiles along k fastest.
    """
    a_scale = by_row(made["a_scale"], case.scale_major_mode)
    b_scale = by_row(made["b_scale"], case.scale_major_mode)
    padded = torch.nn.functional.pad(b_scale, (0, -b_scale.shape[-1] % PADDED_TILES)).contiguous()
    return {"a_scale": a_scale.T.contiguous().T, "b_scale": padded.transpose(-2, -1)}


def block_scaled(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor
) -> None:
    """cuBLAS's out (m, n) = A B^T of A (m, k) and B (n, k), scales as ``for_cublas`` gives them."""
    scaling = torch.nn.functional.ScalingType
    torch._scaled_mm_v2(
        a,
        b.T,
        [a_scale],
        [scaling.BlockWise1x128.value],
        [],
        [b_scale],
        [scaling.BlockWise128x128.value],
        [],
        None,
        out.dtype,
        (),  # contraction_dim
        False,  # use_fast_accum, which this product has not got
        out=out,
    )
