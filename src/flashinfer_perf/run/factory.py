"""Makes a problem's tensors: seeded one by one, and refused before they are allocated when they cannot fit."""

from __future__ import annotations

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

    def reserve(self, name: str, shape: Sequence[int], dtype: DType) -> None:
        """Adds a tensor to the account.

        Raises:
            DoesNotFit: with the bytes needed so far and the bytes available.
        """
        self._reserved += math.ceil(math.prod(shape) * dtype.bytes)
        if self._reserved > self._available:
            raise DoesNotFit(name, self._reserved, self._available)

    def normal(self, name: str, shape: Sequence[int], dtype: DType) -> torch.Tensor:
        """Standard normal; drawn in the given format, which must be a floating one of 16 bits or more."""
        self.reserve(name, shape, dtype)
        return torch.randn(
            tuple(shape), dtype=dtype.torch, device=self.device, generator=self.generator(name, self.device)
        )

    def uniform(self, name: str, shape: Sequence[int], dtype: DType) -> torch.Tensor:
        """Uniform on [0, 1)."""
        self.reserve(name, shape, dtype)
        return torch.rand(
            tuple(shape), dtype=dtype.torch, device=self.device, generator=self.generator(name, self.device)
        )

    def lengths(self, count: int, maximum: int) -> torch.Tensor:
        """Int32 lengths uniform on 1 … maximum, on the CPU.

        Drawn with the bare seed, which makes them the documented ones: 103, 436, 861, … for seed 42 and 1024.
        """
        generator = torch.Generator().manual_seed(self._seed % 2**63)
        return torch.randint(1, maximum + 1, (count,), dtype=torch.int32, generator=generator)

    def generator(self, name: str, device: str = "cpu") -> torch.Generator:
        """The generator of one tensor."""
        key = f"{self._seed}/{self.ranks.rank}/{name}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
        return torch.Generator(device=device).manual_seed(seed)
