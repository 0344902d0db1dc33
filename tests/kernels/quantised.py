"""Our quantisers beside ``formats``: inputs that leave no code untried, and the bytes that differ."""

from __future__ import annotations

from typing import NamedTuple

import torch

from flashinfer_perf.formats import mxfp4, mxfp8, nvfp4, scale_layout, shuffle
from flashinfer_perf.kernels.quantize import quantize_mxfp4, quantize_mxfp8, quantize_nvfp4
from flashinfer_perf.kernels.quantize_tuning import QuantizeTiling

BLOCKS = {"mxfp8": mxfp8.BLOCK, "mxfp4": mxfp4.BLOCK, "nvfp4": nvfp4.BLOCK}
UNWRITTEN = 0xAA


class Case(NamedTuple):
    format: str
    x: torch.Tensor
    layout: str
    tiles: QuantizeTiling | None = None
    global_scale: float = 1.0
    alignment: int = 32
    shuffled: bool = False
    hardware: bool | None = None
    spoilt: bool = False
    """One element is changed behind the kernel's back, which must show."""


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """(256, 256): all 65536 numbers of a 16-bit format in random blocks, NaN, infinities and subnormals among them."""
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))
    return torch.arange(1 << 16)[order].to(torch.int16).view(dtype).view(256, 256)


def every_amax(dtype: torch.dtype, name: str) -> torch.Tensor:
    """(4096, 8 blocks): all 32768 magnitudes as a block's first element; the others are code thresholds, numbers beside
    them and random parts of it. Blocks of infinity and NaN hold those, too.
    """
    block = BLOCKS[name]
    tops = torch.arange(1 << 15).to(torch.int16).view(dtype).float()
    part = torch.rand(len(tops), block, generator=torch.Generator().manual_seed(2)) * 2 - 1
    ties = torch.tensor([1, 3, 5, 7, 10, 14, 20, 24]) / 24  # of E2M1, when the largest element is 6
    part[:, 1:9] = ties * part[:, 1:9].sign()
    part[:, 0], part[:, 9], part[:, 10] = 1, 0, -1
    return (tops[:, None] * part).to(dtype).view(-1, 8 * block)


def differences(case: Case) -> tuple[int, int]:
    """Bytes of values and of scales, padding included, that are not those of ``formats``."""
    expected = _expected(case)
    actual = [torch.full_like(tensor, UNWRITTEN) for tensor in expected]
    x = case.x.clone()
    if case.spoilt:
        x[0, 0] = 1000
    _quantise(case, x, *actual)
    values, scales = (int((one != two).sum()) for one, two in zip(actual, expected, strict=True))
    return values, scales


def _expected(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    if case.format == "mxfp8":
        elements, scales = mxfp8.encode(case.x, case.alignment)
    elif case.format == "mxfp4":
        elements, scales = mxfp4.encode(case.x)
    else:
        elements, scales = nvfp4.encode(case.x, _global_scale(case))
    if case.shuffled:
        elements, scales = shuffle.shuffle_rows(elements), shuffle.shuffle_rows(scales)
    return elements.view(torch.uint8), scale_layout.arrange(scales, case.layout)


def _global_scale(case: Case) -> torch.Tensor:
    return torch.tensor([case.global_scale], device=case.x.device)


def _quantise(case: Case, x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    if case.format == "mxfp8":
        values = values.view(torch.float8_e4m3fn)
        quantize_mxfp8(x, values, scales, case.layout, tiles=case.tiles, hardware=case.hardware)
    elif case.format == "mxfp4":
        quantize_mxfp4(x, values, scales, case.layout, tiles=case.tiles)
    else:
        scale = _global_scale(case)
        quantize_nvfp4(x, values, scales, scale, case.layout, shuffled=case.shuffled, tiles=case.tiles)
