"""The experts' weights in the formats that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

SCALE_BLOCK = 128
"""Rows and columns that share a scale in FP8 with block scales."""
FP4_BLOCK = 16
"""Columns that share a scale in NVFP4."""
ALIGNMENT = 16
"""Bytes: what a thread reads at once; rows are multiples of it, so that each begins at one."""


class ExpertFormat(str, Enum):
    """What weights, and activations where products are of FP8, are stored in."""

    BF16 = "16-bit"
    FP8_TENSOR = "fp8 per tensor"
    FP8_CHANNEL = "fp8 per channel"
    FP8_BLOCK = "fp8 128x128 blocks"
    NVFP4 = "nvfp4"

    @property
    def fp8(self) -> bool:
        """Whether activations are of FP8, too."""
        return self in (ExpertFormat.FP8_TENSOR, ExpertFormat.FP8_CHANNEL, ExpertFormat.FP8_BLOCK)


MULTIPLES = {ExpertFormat.FP8_BLOCK: SCALE_BLOCK, ExpertFormat.NVFP4: 64}
"""What hidden and intermediate size are multiples of; see ``fp4_order``."""


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of the experts that are here (E of them), for hidden size H and intermediate size I.

    A gated activation has twice the rows in w1: first those that make the linear part (up), then the gate's.
    """

    format: ExpertFormat
    w1: torch.Tensor
    """(E, 2 I or I, H); bf16 or fp16, float8_e4m3fn, or for NVFP4 (…, H / 2) uint8, even elements in the low half."""
    w2: torch.Tensor
    """(E, H, I), likewise."""
    w1_scale: torch.Tensor | None = None
    """fp32 (E,) per tensor, (E, rows) per channel, (E, rows / 128, columns / 128) in blocks; NVFP4: e4m3 or uint8,
    (E, rows, columns / 16). A value is its element times its scale."""
    w2_scale: torch.Tensor | None = None
    w1_global: torch.Tensor | None = None
    """NVFP4: fp32 (E,). A value is element times block scale, divided by this."""
    w2_global: torch.Tensor | None = None

    @property
    def num_experts(self) -> int:
        """Those that are here."""
        return self.w1.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.w2.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.w2.shape[2] * (2 if self.format is ExpertFormat.NVFP4 else 1)

    def check(self, gated: bool) -> None:
        """Raises ValueError for tensors that are not as the fields' descriptions say."""
        parts = 2 if gated else 1
        self._check_matrix("w1", parts * self.intermediate_size, self.hidden_size)
        self._check_matrix("w2", self.hidden_size, self.intermediate_size)
        self._check_scales("w1", parts * self.intermediate_size, self.hidden_size)
        self._check_scales("w2", self.hidden_size, self.intermediate_size)
        block = MULTIPLES.get(self.format, ALIGNMENT)
        for name, size in (("hidden size", self.hidden_size), ("intermediate size", self.intermediate_size)):
            if size % block:
                raise ValueError(f"{name} is {size}: give a multiple of {block} for {self.format.value}")

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raises ValueError for activations that the weights are not for, bfloat16 or float16."""
        if self.format is ExpertFormat.BF16 and self.w1.dtype != dtype:
            raise ValueError(f"dtype is {dtype} and w1 is {self.w1.dtype}: give the same")

    def _check_matrix(self, name: str, rows: int, columns: int) -> None:
        dtypes = {ExpertFormat.BF16: (torch.bfloat16, torch.float16), ExpertFormat.NVFP4: (torch.uint8,)}
        allowed = dtypes.get(self.format, (torch.float8_e4m3fn,))
        packed = 2 if self.format is ExpertFormat.NVFP4 else 1
        _check(name, getattr(self, name), (self.num_experts, rows, columns // packed), allowed)

    def _check_scales(self, name: str, rows: int, columns: int) -> None:
        experts = self.num_experts
        shapes = {
            ExpertFormat.FP8_TENSOR: (experts,),
            ExpertFormat.FP8_CHANNEL: (experts, rows),
            ExpertFormat.FP8_BLOCK: (experts, rows // SCALE_BLOCK, columns // SCALE_BLOCK),
            ExpertFormat.NVFP4: (experts, rows, columns // FP4_BLOCK),
        }
        if self.format in shapes:
            bytes_ = (torch.float8_e4m3fn, torch.uint8)
            allowed = bytes_ if self.format is ExpertFormat.NVFP4 else (torch.float32,)
            _check(f"{name}_scale", getattr(self, f"{name}_scale"), shapes[self.format], allowed)
        if self.format is ExpertFormat.NVFP4:
            _check(f"{name}_global", getattr(self, f"{name}_global"), (experts,), (torch.float32,))


def _check(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    expected = f"{shape} of {' or '.join(str(dtype) for dtype in dtypes)}"
    if tensor is None:
        raise ValueError(f"{name} is missing: give {expected}")
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}: give {expected}")
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
        raise ValueError(f"{name} must be contiguous and start at a multiple of {ALIGNMENT} bytes")
