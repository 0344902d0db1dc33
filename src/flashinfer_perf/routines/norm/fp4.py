"""What the FP4 norms share: formats, outputs, checks, and FlashInfer's limits."""

from __future__ import annotations

import math
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import Requirement, capability, case_rule
from flashinfer_perf.core.routine import Rule, narrowed
from flashinfer_perf.formats import mxfp4, nvfp4
from flashinfer_perf.formats.scale_layout import TILE_COLUMNS, TILE_ROWS, swizzle_128x4
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.norm import backends
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.routines.norm.work import elements
from flashinfer_perf.run.problem import Check, Shown

BLOCK = {DType.NVFP4: nvfp4.BLOCK, DType.MXFP4: mxfp4.BLOCK}
SCALE_FORMAT = {DType.NVFP4: "e4m3", DType.MXFP4: "ue8m0"}
"""As FlashInfer calls them."""
out_dtype = narrowed("out_dtype", default=DType.NVFP4, choices=tuple(BLOCK))

RULES = (
    Rule(
        lambda case: case.hidden_size % BLOCK[case.out_dtype] == 0,
        "hidden_size ({hidden_size}) must be divisible by the block of {out_dtype}: 16 for nvfp4, 32 for mxfp4",
    ),
    Rule(
        lambda case: case.out_dtype is DType.NVFP4 or not case.use_global_scale,
        "use_global_scale is for nvfp4: {out_dtype} has no global scale; leave one of the two out",
    ),
)

NEEDS_BLACKWELL: tuple[Requirement, ...] = (
    capability(minimum="10.0"),  # the instruction that converts to e2m1
    backends.flashinfer_installed,
    backends.cute_dsl_installed,
    case_rule("hidden_size of 64 or more", lambda case: case.hidden_size >= 64),
    case_rule(
        "fewer than 2^31 elements",
        lambda case: elements(case) < 1 << 31,
        "FlashInfer's FP4 norms count elements in 32 bits with a sign, and the input has 2^31 or more",
    ),
)
NO_CUDA_KERNEL = "FlashInfer has this in the CuTe DSL only; use --backends cute-dsl"
never: tuple[Requirement, ...] = (
    Requirement("a CUDA kernel, which FlashInfer has not got", lambda machine, flags: NO_CUDA_KERNEL),
)


def scale_outputs(case: NormFlags) -> dict[str, bool]:
    """Names of the outputs with block scales, and whether they are in 128x4 tiles."""
    if case.output_both_sf_layouts:
        return {"block_scale": True, "block_scale_unswizzled": False}
    return {"block_scale": case.is_sf_swizzled_layout}


def checks(case: NormFlags, roundings: int) -> dict[str, Check]:
    """Of elements and scales. ``roundings``: to the input's format, on the way to what is quantised."""
    names = scale_outputs(case)
    judged: dict[str, Check] = {
        name: tolerance.for_fp4_scales(case.out_dtype, case.input_dtype, roundings, swizzled)
        for name, swizzled in names.items()
    }
    judged["y_fp4"] = tolerance.for_fp4_elements(
        case.out_dtype, case.input_dtype, roundings, "block_scale", names["block_scale"]
    )
    return judged


def outputs(case: NormFlags, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Room for elements and scales, by FlashInfer's parameter names.

    Elements are bytes: the library admits them beside torch.float4_e2m1fn_x2, for which torch has hardly an operation.
    """
    made = {"y_fp4": torch.empty((*x.shape[:-1], case.hidden_size // 2), dtype=torch.uint8, device=x.device)}
    for name, swizzled in scale_outputs(case).items():
        made[name] = scale_output(case, x, swizzled)
    return made


def scale_output(case: NormFlags, x: torch.Tensor, swizzled: bool) -> torch.Tensor:
    """(…, hidden / block), or as many bytes as whole 128x4 tiles have."""
    blocks = case.hidden_size // BLOCK[case.out_dtype]
    shape: tuple[int, ...] = (*x.shape[:-1], blocks)
    if swizzled:
        rows = math.prod(x.shape[:-1])
        shape = (-(-rows // TILE_ROWS) * TILE_ROWS * -(-blocks // TILE_COLUMNS) * TILE_COLUMNS,)
    dtype = torch.float8_e4m3fn if case.out_dtype is DType.NVFP4 else torch.uint8
    return torch.empty(shape, dtype=dtype, device=x.device)


def flashinfer_options(case: NormFlags) -> dict[str, Any]:
    """The keywords of FlashInfer's functions that say how to quantise."""
    return {
        "block_size": BLOCK[case.out_dtype],
        "scale_format": SCALE_FORMAT[case.out_dtype],
        "is_sf_swizzled_layout": case.is_sf_swizzled_layout,
        "enable_pdl": case.enable_pdl,
    }


def quantise(normed: torch.Tensor, global_scale: torch.Tensor, format: DType, written: dict[str, torch.Tensor]) -> None:
    """Writes the FP4 encoding of (…, hidden) fp32 into outputs by name; one with one dimension gets 128x4 tiles."""
    if format is DType.NVFP4:
        packed, scales = nvfp4.encode(normed, global_scale, zero_lost=True)
    else:
        packed, scales = mxfp4.encode(normed)
    written["y_fp4"].copy_(packed)
    for name in written.keys() - {"y_fp4"}:
        out = written[name].view(torch.uint8)
        out.copy_(swizzle_128x4(scales.flatten(0, -2)).flatten() if out.dim() == 1 else scales)


def shown(case: NormFlags) -> tuple[Shown, ...]:
    """How the output is quantised."""
    return (
        Shown("out_dtype", case.out_dtype),
        Shown("block_size", BLOCK[case.out_dtype]),
        Shown("use_global_scale", case.use_global_scale),
        Shown("is_sf_swizzled_layout", case.is_sf_swizzled_layout),
    )
