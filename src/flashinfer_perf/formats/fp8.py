"""FP8, e4m3 and e5m2, with the conversion that kernels use: to nearest even, saturating. With one scale for a tensor
or none; tiles with scales of their own are in ``fp8_tiles``.
"""

from __future__ import annotations

from typing import NamedTuple

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch

LARGEST = {DType.FP8_E4M3: 448.0, DType.FP8_E5M2: 57344.0}
AT_A_TIME = 1 << 26
"""Elements that are quantised at a time: 256 MiB of them in fp32."""


class Fp8Tensor(NamedTuple):
    elements: torch.Tensor
    """In the FP8 format, of the shape and the strides of what was quantised."""
    scale: torch.Tensor
    """fp32, no dimensions: what elements are multiplied by."""


def encode(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Rounds fp32 to FP8, to nearest even. Infinities and what is too large become the largest number; NaN stays.

    torch's own cast does not: it makes infinities of large values in e5m2, and in older versions NaN in e4m3.
    """
    limit = LARGEST[dtype]
    return values.clamp(-limit, limit).to(dtype.torch)


def encode_tensor(values: torch.Tensor, dtype: DType) -> Fp8Tensor:
    """Quantises a tensor of any shape with one scale: amax / largest number, and 1 for a tensor of zeros.

    All in fp32, rounded once into the scale, once by the division and once into FP8. FlashInfer's benchmarks compute
    scale and product in the input's format, which rounds both once more.
    Infinities are not seen by the maximum and saturate; NaN is not either, and stays.
    """
    scale = _scale_of(values, dtype)
    elements = torch.empty_like(values, dtype=dtype.torch)
    for part, coded in zip(_parts(values), _parts(elements), strict=True):
        coded.copy_(encode(part.float() / scale, dtype))
    return Fp8Tensor(elements, scale)


def _scale_of(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    amax = torch.stack([values.new_zeros((), dtype=torch.float32), *map(_largest, _parts(values))]).amax()
    scale = (amax / LARGEST[dtype]).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(amax == 0, torch.ones_like(scale), scale)


def _largest(part: torch.Tensor) -> torch.Tensor:
    """In the part's own format, in which a maximum is exact: half the memory of fp32, where weights are of 16 bits."""
    return part.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs_().amax().float()


def _parts(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of it along the first dimension, so that large tensors are never there in fp32 as a whole."""
    if values.numel() <= AT_A_TIME:
        return (values,) if values.numel() else ()
    return values.split(max(AT_A_TIME * len(values) // values.numel(), 1))


def decode_tensor(quantised: Fp8Tensor) -> torch.Tensor:
    """fp32 values."""
    return quantised.elements.float() * quantised.scale
