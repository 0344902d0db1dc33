"""What a requirement may ask of the machine. Filled by ``device``; torch-free, so that records can hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The device that cases run on."""

    device: str
    """'cpu' or 'cuda:N', as torch spells it."""
    name: str
    """The GPU's marketing name, or 'cpu'."""
    compute_capability: tuple[int, int] | None = None
    """(9, 0) for Hopper; None without a CUDA GPU."""
    last_level_cache_bytes: int = 0
    """L2 of a GPU, L3 of a CPU; what a cold cache has to be cleared of."""

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def compute_capability_text(self) -> str:
        """'9.0', or '' without a GPU."""
        return "{}.{}".format(*self.compute_capability) if self.compute_capability else ""
