"""A paged cache, slot by slot: what was to be written is right, and nothing else was touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.fp8 import Fp8Codes
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class Fp8Slots:
    """Of an FP8 cache (pages, …, slots of a page, …): bytes of other slots are as before, codes in those that were to
    be written as ``Fp8Codes`` has them. The expected cache holds the truth in the written slots and what was there
    before in the others.

    Attributes:
        written: (pages, slots of a page) bool.
        slot_dim: which dimension of the cache counts the slots of a page.
    """

    written: torch.Tensor = field(repr=False)
    slot_dim: int

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        if finding := wrong_shape(name, actual[name], expected[name]):
            return finding
        found, truth = self._slots(actual[name]), self._slots(expected[name])
        touched = (found != truth).flatten(2).any(dim=-1) & ~self.written
        if bool(touched.any()):
            return self._overwritten(name, touched, truth)
        dtype = expected[name].dtype
        parts = ({name: slots[self.written].view(dtype)} for slots in (found, truth))
        finding = Fp8Codes().judge(name, *parts)
        return replace(finding, detail=f"{finding.detail}, in {int(self.written.sum())} slots; others untouched")

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return self.judge(name, actual, other)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _slots(self, cache: torch.Tensor) -> torch.Tensor:
        """Bytes, (pages, slots of a page, …)."""
        return cache.view(torch.uint8).movedim(self.slot_dim, 1)

    def _overwritten(self, name: str, touched: torch.Tensor, truth: torch.Tensor) -> Finding:
        page, slot = (int(index) for index in touched.nonzero()[0])
        return Finding(
            output=name,
            passed=False,
            detail=f"{int(touched.sum())} slots changed that were not to be written, first slot {slot} of page {page}",
            elements=truth.numel(),
            differing=int(touched.sum()) * truth[0, 0].numel(),
        )
