"""A product's input in the form that it reads: which form, the buffers for it, and the launches that fill them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from flashinfer_perf.kernels.moe.rows import BLOCK, convert_rows, raise_scale
from flashinfer_perf.kernels.moe.weights import ExpertFormat

WARPS = 8
"""Of a program with one row."""


class Operand(NamedTuple):
    """What a product reads."""

    elements: torch.Tensor
    scale: torch.Tensor
    """fp32; anything where the format has none."""
    scale_stride: int
    """Between rows' scales; 0 for one of all."""


def form_of(format: ExpertFormat, static_scale: torch.Tensor | None, per_token: bool) -> str:
    """Of 16-bit rows: as they are (the empty string), given, token, tensor or blocks."""
    if not format.fp8:
        return ""
    if format is ExpertFormat.FP8_BLOCK:
        return "blocks"
    if static_scale is not None:
        return "given"
    return "token" if per_token else "tensor"


def width_of(columns: int) -> int:
    """Of a program that has one row."""
    return max(triton.next_power_of_2(columns), BLOCK.value)


def find_scale(
    x: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, overlap: dict[str, bool], *, listed: bool = False
) -> None:
    """Raises one scale to what rows of x need, as ``rows`` says; see ``Conversion.launch``."""
    columns = x.shape[1]
    raise_scale[(len(rows) if listed else x.shape[0],)](
        x, scale, rows, columns, WIDTH=width_of(columns), LISTED=listed, num_warps=WARPS, **overlap
    )


class Conversion:
    """Of (rows, columns) of 16 bits.

    Args:
        form: as ``form_of`` says, or fp4 order.
        scale: fp32 (1,): the one that is given, or the one that a tensor's largest element raises.
    """

    def __init__(self, form: str, rows: int, columns: int, dtype: torch.dtype, scale: torch.Tensor) -> None:
        self.form = form
        self.columns = columns
        self.rows = rows
        device = scale.device
        blocks = columns // BLOCK.value
        shapes = {"token": (rows,), "blocks": (rows, blocks)}
        self.scale = torch.empty(shapes[form], device=device) if form in shapes else scale
        self.scale_stride = {"token": 1, "blocks": blocks}.get(form, 0)
        stored = dtype if form == "fp4 order" else torch.float8_e4m3fn
        self.elements = torch.empty((rows, columns) if form else (0,), dtype=stored, device=device)

    @property
    def width(self) -> int:
        return width_of(self.columns)

    @property
    def operand(self) -> Operand:
        """What comes of it."""
        return Operand(self.elements, self.scale, self.scale_stride)

    def launch(self, x: torch.Tensor, rows: torch.Tensor, overlap: dict[str, bool], *, listed: bool = False) -> None:
        """Converts as many rows of x as ``rows``, int32 (1,), says; or those that it lists, but for negative ones.

        ``overlap`` is as ``overlap.options`` gives it.
        """
        form = self.form
        if form == "tensor":
            find_scale(x, self.scale, rows, overlap, listed=listed)
            form = "given"
        convert_rows[(len(rows) if listed else self.rows,)](
            x, self.elements, self.scale, rows, self.columns, FORM=form, WIDTH=self.width, LISTED=listed,
            num_warps=WARPS, **overlap,
        )  # fmt: skip
