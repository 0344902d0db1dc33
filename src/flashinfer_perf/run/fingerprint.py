"""Finds out whether a call changed an input that it did not declare as mutated."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.lazy import torch

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Words hashed at a time. 2 MiB stay in a CPU's cache while they are. 32 MiB stay in a large GPU's, and keep it longer
than it takes to enqueue the kernel that hashes them: by 2 MiB, ten gigabytes of weights would be 40 000 kernels.
"""
_SPREAD = -4417276706812531889
"""Any odd number with bits all over."""


class Fingerprints:
    """Hashes of named tensors' storages, taken when made."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        self._before = {name: fingerprint(tensor) for name, tensor in self._tensors.items()}

    def changed(self) -> list[str]:
        """Names of the tensors whose storage holds other bytes now."""
        now = ((name, fingerprint(tensor)) for name, tensor in self._tensors.items())
        return [name for name, value in now if not torch.equal(value, self._before[name])]


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of the bytes of a tensor's storage, as a tensor so that nothing waits for the device."""
    raw = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    whole, size = len(raw) // 8 * 8, _CHUNK[tensor.device.type]
    words, tail = raw[:whole].view(torch.int64), raw[whole:].to(torch.int64)
    weights = _weights(tensor.device, max(min(len(words), size), len(tail)))
    total = (tail * weights[: len(tail)]).sum()
    for start in range(0, len(words), size):
        chunk = _mixed(words[start : start + size])
        total = total * 6364136223846793005 + chunk.mul_(weights[: len(chunk)]).sum()
    return total


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Words one to one, with their upper half in the lower one, too. The top bit of a word would otherwise weigh the
    same wherever it stands, and an even number of them nothing: negating every other element would not be noticed.
    """
    spread = words * _SPREAD
    return spread.bitwise_xor_((spread >> 32).bitwise_and_(0xFFFFFFFF))


def _weights(device: torch.device, count: int) -> torch.Tensor:
    """Odd 64-bit numbers: an odd factor loses no bit of the word that it multiplies."""
    index = torch.arange(count, dtype=torch.int64, device=device)
    return (index * -7046029254386353131) ^ (index << 17) | 1
