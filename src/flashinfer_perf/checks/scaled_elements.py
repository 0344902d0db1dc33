"""Elements that share scales by blocks: judged under the scales that were written, a few rows at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.checks.close import with_worst
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

ELEMENTS_AT_A_TIME = 1 << 21
"""Judged at a time: two dozen fp64 numbers each, 400 MiB."""
EXACT = 1e-6
"""Quantisation error that is none: the truth may be kept in fp32."""


@dataclass(frozen=True)
class ScaledElements(ABC):
    """Base of a check: passes when no element is wrong, not too many differ from the nearest, and all that is lost by
    quantisation is hardly more than exact arithmetic loses.

    Truths: of elements what ``element * scale`` should be, of scales what is rounded to them.

    Attributes:
        scales: name of the output with the block scales.
        max_loss: of the relative L2 norm of the error, in units of exact arithmetic's.
    """

    format: BlockFormat
    scales: str
    max_loss: float

    @property
    @abstractmethod
    def rule(self) -> str:
        """What is asked of single elements."""

    @abstractmethod
    def scale_bytes(self, output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor | Finding:
        """(…, blocks) bytes of the output with scales, in the order of the truth; a failed finding of a wrong one."""

    @abstractmethod
    def verdicts(
        self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which elements are not the nearest under their own scale, and which are wrong: (…, blocks, block) bool.

        Args:
            right: what they should be worth, fp64.
            ranks: what they are.
            scales: (…, blocks) bytes.
        """

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, …) bytes of elements in the order of the truth."""
        return rows

    def most_differing(self, elements: int) -> float:
        """How many of so many elements may differ from the nearest."""
        return math.inf

    def in_values(
        self, truth: torch.Tensor, raw: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What elements are worth, and what they are compared with to find the worst."""
        return self.format.dequantise(raw, scales), truth.double()

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth, wanted, raw = expected[name], expected[self.scales], actual[name].view(torch.uint8)
        if finding := wrong_shape(name, raw, truth[..., ::2] if self.format.packed else truth):
            return finding
        scales = self.scale_bytes(actual[self.scales], wanted)
        if isinstance(scales, Finding):
            return scales
        tensors = tuple(tensor.flatten(0, -2) for tensor in (truth, self.in_order(raw), scales, wanted))
        rows = max(ELEMENTS_AT_A_TIME // truth.shape[-1], 1)
        parts = [self._sums(*slices) for slices in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]
        finding = self._finding(name, truth.numel(), torch.stack(parts).sum(dim=0).tolist())
        return finding if finding.passed else with_worst(finding, *self.in_values(*tensors[:3]))

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Not judged: two right outputs differ in every element of a block of which the scales differ."""
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _sums(self, truth: torch.Tensor, raw: torch.Tensor, scales: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Of a few rows: differing elements, wrong ones, squares of error, unavoidable error, truth and value, and
        truth times value.
        """
        right, ranks = self.format.by_blocks(truth.double()), self.format.by_blocks(self.format.ranks(raw))
        scale, best = self.format.decode(scales)[..., None], self.format.decode(self.format.encode(wanted))[..., None]
        value = self.format.values(ranks) * scale
        ideal = self.format.values(self.format.nearest(right, best)) * best
        counts = [part.sum().double() for part in self.verdicts(right, ranks, scales)]
        squares = [part.square().sum() for part in (value - right, ideal - right, right, value)]
        return torch.stack([*counts, *squares, (right * value).sum()])

    def _finding(self, name: str, elements: int, sums: list[float]) -> Finding:
        differing, wrong, error, unavoidable, truth, value, product = sums
        loss, least = (math.sqrt(part / truth) if truth else math.sqrt(part) for part in (error, unavoidable))
        limit = self.max_loss * least + EXACT
        return Finding(
            output=name,
            passed=wrong == 0 and differing <= self.most_differing(elements) and loss <= limit,
            detail=f"{self.rule}; quantisation error {loss:.3g} in relative L2, at most {limit:.3g}",
            elements=elements,
            differing=int(differing),
            relative_l2=loss,
            cosine=product / math.sqrt(truth * value) if truth * value > 0 else float(truth == value),
            coverage="the error of quantisation",
        )
