"""Makes a problem's tensors: seeded one by one, and refused before they are allocated when they cannot fit."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.ranks import Ranks

HEADROOM = 0.9
"""Share of the free memory that inputs may take; kernels need workspaces, and references fp32 copies."""
_SLICE = 1 << 24
"""Elements that are drawn at a time where the format cannot be drawn in."""


class TensorFactory:
    """Every tensor has a generator of its own, seeded from the case's seed and the tensor's name, so that adding one
    changes no other. Bulk data is drawn on the device; what decides shapes or addresses (lengths, page tables,
    routing) is drawn on the CPU, so that it is the same everywhere. Ranks draw different data.
    """

    def __init__(self, device: str, seed: int, free_bytes: int, ranks: Ranks) -> None:
        self.device = device
        self.ranks = ranks
        self._seed = seed
        self._available = int(free_bytes * HEADROOM)
        self._reserved = 0

    def in_common(self) -> TensorFactory:
        """One that draws on every rank what rank 0 draws, with an account of its own: for what is not kept."""
        from flashinfer_perf.run.ranks import SingleRank

        common = copy.copy(self)
        common.ranks = SingleRank()
        return common

    def reserve(self, name: str, shape: Sequence[int], dtype: DType) -> None:
        """Adds a tensor to the account.

        Raises:
            DoesNotFit: with the bytes needed so far and the bytes available.
        """
        self._reserved += math.ceil(math.prod(shape) * dtype.bytes)
        if self._reserved > self._available:
            raise DoesNotFit(name, self._reserved, self._available)

    def normal(
        self, name: str, shape: Sequence[int], dtype: DType, scale: float = 1.0, rank: int | None = None
    ) -> torch.Tensor:
        """Standard normal, divided by the scale: an element stands for its value times that.

        Formats of 16 bits or more are drawn as they are. FP8 is rounded from bfloat16 slice by slice, so that there is
        never a whole tensor of twice the size; what does not fit saturates.

        Args:
            rank: as this rank draws it; None for the factory's own. What several ranks have in common is rank 0's.
        """
        self.reserve(name, shape, dtype)
        generator = self.generator(name, self.device, rank)
        if dtype.bytes > 1:
            drawn = torch.randn(tuple(shape), dtype=dtype.torch, device=self.device, generator=generator)
            return drawn if scale == 1 else drawn.div_(scale)
        out = torch.empty(tuple(shape), dtype=dtype.torch, device=self.device)
        largest = torch.finfo(dtype.torch).max
        for part in out.view(-1).split(_SLICE):
            values = torch.randn(len(part), dtype=torch.bfloat16, device=self.device, generator=generator)
            part.copy_(values.div_(scale).clamp_(-largest, largest))
        return out

    def uniform(self, name: str, shape: Sequence[int], dtype: DType) -> torch.Tensor:
        """Uniform on [0, 1)."""
        self.reserve(name, shape, dtype)
        return torch.rand(
            tuple(shape), dtype=dtype.torch, device=self.device, generator=self.generator(name, self.device)
        )

    def lengths(self, count: int, *maxima: int) -> tuple[torch.Tensor, ...]:
        """Int32 lengths uniform on 1 … maximum, on the CPU: for each maximum so many, drawn one after the other.

        Drawn with the bare seed, which makes them the documented ones: 103, 436, 861, … for seed 42 and 1024.
        """
        generator = torch.Generator().manual_seed(self._seed % 2**63)
        return tuple(
            torch.randint(1, maximum + 1, (count,), dtype=torch.int32, generator=generator) for maximum in maxima
        )

    def generator(self, name: str, device: str = "cpu", rank: int | None = None) -> torch.Generator:
        """The generator of one tensor, as a rank has it; None for this one."""
        key = f"{self._seed}/{self.ranks.rank if rank is None else rank}/{name}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
        return torch.Generator(device=device).manual_seed(seed)
