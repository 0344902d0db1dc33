"""What the quantisers write, the same for every backend: elements ``x_q`` and block scales ``sf``.

    x_q  (m, k) in float8_e4m3fn for MXFP8; (…, m, k / 2) bytes for the FP4 formats, two elements each
    sf   bytes: a scale for every block of a row, arranged in a layout, its tiles padded with zeros

FlashInfer gives scales of MXFP8 in one dimension, those of FP4 in (padded rows, padded columns), and of a batch in
(batch, bytes of an entry).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.checks.quantised_blocks import Placed
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import scale_layout
from flashinfer_perf.formats.shuffle import shuffle_rows
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Check

X_Q, SF = "x_q", "sf"
"""Names of the outputs."""


@dataclass(frozen=True)
class Encoding:
    """Shapes, number formats and places of both outputs.

    Attributes:
        format: elements to a block, and the numbers of elements and scales.
        shape: of what is quantised, (m, k) or (batch, m, k).
        layout: of the scales: 128x4, 8x4 or linear; each entry of a batch is arranged for itself.
        kept: leading dimensions that the scales keep; all behind them are one.
        shuffled: rows of elements and scales are in the order that TensorRT-LLM's kernels read.
    """

    format: BlockFormat
    shape: tuple[int, ...]
    layout: str
    kept: int
    shuffled: bool = False

    @property
    def x_q_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.shape[-1] // (2 if self.format.packed else 1))

    @property
    def x_q_dtype(self) -> torch.dtype:
        return torch.uint8 if self.format.packed else torch.float8_e4m3fn

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Of the scales row by row, before they are arranged."""
        return (*self.shape[:-1], self.shape[-1] // self.format.block)

    @property
    def sf_shape(self) -> tuple[int, ...]:
        """Of the output, which is in uint8."""
        *batch, rows, columns = self.scales_shape
        padded = (*batch, *scale_layout.padded_shape(self.layout, rows, columns))
        return (*padded[: self.kept], math.prod(padded[self.kept :]))

    @property
    def placed(self) -> Placed:
        """The same, as the checks read it."""
        return Placed(self.layout, self.sf_shape, self.shuffled)

    def place(self, elements: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both outputs, from elements (…, m, k), FP4 ones packed, and scales (…, m, k / block) in the input's order."""
        if self.shuffled:
            elements, scales = shuffle_rows(elements), shuffle_rows(scales)
        return elements, scale_layout.arrange(scales, self.layout).view(self.sf_shape)

    def room(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Both outputs, to be written."""
        return {
            X_Q: torch.empty(self.x_q_shape, dtype=self.x_q_dtype, device=device),
            SF: torch.empty(self.sf_shape, dtype=torch.uint8, device=device),
        }

    def reserve(self, make: TensorFactory) -> None:
        """Adds both outputs to the account. Raises DoesNotFit."""
        make.reserve(X_Q, self.x_q_shape, DType.FP8_E4M3)  # a byte each, as scales are
        make.reserve(SF, self.sf_shape, DType.FP8_E4M3)

    def checks(self, global_scale: float = 1.0) -> dict[str, Check]:
        """Codes exact but for what fp32 arithmetic explains, in the right places, padding zero."""
        return {
            X_Q: tolerance.for_quantised_elements(self.format, self.placed, SF, global_scale),
            SF: tolerance.for_quantised_scales(self.format, self.placed),
        }
