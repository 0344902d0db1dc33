"""Experts' weights, made expert by expert in the format in which they stay: no full-precision copy is ever whole.

An expert's numbers depend on the seed and on its number over all ranks alone, so that ranks hold parts of one layer.
Each is drawn with the root mean square 1 / sqrt(columns), which keeps a token's values near 1, times a loudness of its
own: with the same for all, a kernel that takes another expert's scale would be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, fp8_tiles, nvfp4
from flashinfer_perf.formats.fp8_tiles import Fp8Tiles
from flashinfer_perf.formats.nvfp4 import Nvfp4
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.layer import Expert, Layer
from flashinfer_perf.run.factory import TensorFactory

TILE = (128, 128)
"""Rows and columns that share a scale in FP8_BLOCK."""
LOUDNESS = (1.0, 0.6)
"""Of experts with even and with odd numbers: neighbours differ by more than any format's tolerance. Times a random
number of at least nine tenths."""
WIDE_COPIES = 8
"""fp32 copies of one expert that quantising takes at the most."""


@dataclass(frozen=True)
class Drawn:
    """Weights to draw, those of a rank.

    Attributes:
        layer: which experts are here.
        sizes: hidden and intermediate size of a whole expert.
        dtype: format before they are quantised.
        tp_size, tp_rank: of the intermediate size, this share.
    """

    layer: Layer
    sizes: tuple[int, int]
    dtype: DType
    tp_size: int = 1
    tp_rank: int = 0

    @property
    def share(self) -> slice:
        """Of the intermediate size."""
        part = self.sizes[1] // self.tp_size
        return slice(self.tp_rank * part, (self.tp_rank + 1) * part)

    @property
    def whole(self) -> Drawn:
        """The same of all ranks together."""
        return replace(self, tp_size=1, tp_rank=0)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of both weights here."""
        hidden, part = self.sizes[0], self.sizes[1] // self.tp_size
        return {"w1": (2 * part if self.layer.gated else part, hidden), "w2": (hidden, part)}

    def experts(self, make: TensorFactory, name: str) -> Iterator[torch.Tensor]:
        """The weights ``w1`` or ``w2`` of one expert after the other, (rows, columns) of this rank."""
        whole = self.whole.shapes[name]
        for number in self.layer.experts:
            generator = make.generator(f"{name} of expert {number}", make.device)
            drawn = torch.randn(whole, dtype=self.dtype.torch, device=make.device, generator=generator)
            own = float(torch.rand((), generator=make.generator(f"{name} loudness {number}")))
            loudness = LOUDNESS[number % 2] * (0.9 + 0.1 * own)
            yield self._local(name, drawn.mul_(loudness / math.sqrt(whole[1])))

    def _local(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        if self.tp_size == 1:
            return whole
        if name == "w2":
            return whole[:, self.share].contiguous()
        halves = whole.unflatten(0, (2 if self.layer.gated else 1, -1))
        return halves[:, self.share].flatten(0, 1)


Weights = dict[str, "torch.Tensor"]
"""``w1`` (experts, 2 I or I, H), ``w2`` (experts, H, I), and scales: ``w1_scale``, ``w1_global``, …"""


@dataclass(frozen=True)
class Format:
    """A format of weights: how they are made, and what they stand for.

    Attributes:
        make: of a factory and what to draw.
        decoded: (weights, ``w1`` or ``w2``, index) -> (rows, columns) in fp32.
    """

    make: Callable[[TensorFactory, Drawn], Weights]
    decoded: Callable[[Weights, str, int], torch.Tensor]

    def expert(self, weights: Weights) -> Expert:
        """For the truth."""
        return lambda index: (self.decoded(weights, "w1", index), self.decoded(weights, "w2", index))


def _plain(make: TensorFactory, drawn: Drawn) -> Weights:
    made = {name: _room(make, name, drawn, shape, drawn.dtype) for name, shape in drawn.shapes.items()}
    for name, whole in made.items():
        for index, values in enumerate(drawn.experts(make, name)):
            whole[index] = values
    return made


def _fp8_tensor(make: TensorFactory, drawn: Drawn) -> Weights:
    """One scale for an expert's matrix."""
    made: Weights = {}
    for name, shape in drawn.shapes.items():
        made[name] = _room(make, name, drawn, shape, DType.FP8_E4M3)
        made[f"{name}_scale"] = _room(make, f"{name}_scale", drawn, (), DType.FLOAT32)
    _reserve_one(make, drawn)
    for name in drawn.shapes:
        for index, values in enumerate(drawn.experts(make, name)):
            made[name][index], made[f"{name}_scale"][index] = fp8.encode_tensor(values, DType.FP8_E4M3)
    return made


def _fp8_block(make: TensorFactory, drawn: Drawn) -> Weights:
    """A power of two for every 128 x 128. Every second one is halved by chance: most would be alike."""
    made: Weights = {}
    for name, (rows, columns) in drawn.shapes.items():
        made[name] = _room(make, name, drawn, (rows, columns), DType.FP8_E4M3)
        tiles = (rows // TILE[0], columns // TILE[1])
        made[f"{name}_scale"] = _room(make, f"{name}_scale", drawn, tiles, DType.FLOAT32)
    _reserve_one(make, drawn)
    for name in drawn.shapes:
        for index, values in enumerate(drawn.experts(make, name)):
            made[name][index], made[f"{name}_scale"][index] = fp8_tiles.encode(values, TILE)
        scales = made[f"{name}_scale"]
        chance = make.generator(f"{name}_scale", make.device)
        scales.div_(1 << torch.randint(2, scales.shape, device=make.device, generator=chance))
    return made


def _nvfp4(make: TensorFactory, drawn: Drawn) -> Weights:
    """Block scales row by row, and a global scale for an expert's matrix: a value is element * scale / global scale."""
    made: Weights = {}
    for name, (rows, columns) in drawn.shapes.items():
        made[name] = _room(make, name, drawn, (rows, columns), DType.NVFP4)
        blocks = (rows, columns // nvfp4.BLOCK)
        made[f"{name}_scale"] = _room(make, f"{name}_scale", drawn, blocks, DType.FP8_E4M3).view(torch.uint8)
        made[f"{name}_global"] = _room(make, f"{name}_global", drawn, (), DType.FLOAT32)
    _reserve_one(make, drawn)
    for name in drawn.shapes:
        for index, values in enumerate(drawn.experts(make, name)):
            scale = nvfp4.LARGEST / values.abs().amax().float()
            made[name][index], made[f"{name}_scale"][index] = nvfp4.encode(values, scale)
            made[f"{name}_global"][index] = scale
    return made


def _room(make: TensorFactory, name: str, drawn: Drawn, shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
    """An empty tensor for all experts here; all of them are accounted for before the first one is drawn."""
    experts = len(drawn.layer.experts)
    make.reserve(name, (experts, *shape), dtype)
    stored = (*shape[:-1], shape[-1] // 2) if dtype is DType.NVFP4 else shape
    return torch.empty(experts, *stored, dtype=dtype.torch, device=make.device)


def _reserve_one(make: TensorFactory, drawn: Drawn) -> None:
    """What is there while one expert is quantised."""
    hidden, intermediate = drawn.sizes
    rows = 2 * intermediate if drawn.layer.gated else intermediate
    make.reserve("an expert before it is quantised", (WIDE_COPIES, rows, hidden), DType.FLOAT32)


SIXTEEN_BITS = Format(_plain, lambda weights, name, index: weights[name][index].float())
FP8_TENSOR = Format(
    _fp8_tensor, lambda weights, name, index: weights[name][index].float() * weights[f"{name}_scale"][index]
)
FP8_BLOCK = Format(
    _fp8_block,
    lambda weights, name, index: fp8_tiles.decode(
        Fp8Tiles(weights[name][index], weights[f"{name}_scale"][index]), TILE
    ),
)
NVFP4 = Format(
    _nvfp4,
    lambda weights, name, index: nvfp4.decode(
        Nvfp4(weights[name][index], weights[f"{name}_scale"][index]), weights[f"{name}_global"][index]
    ),
)
