"""Outputs with one right answer: integers, packed codes, scale bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.close import with_worst
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class Exact:
    """Passes when every element is equal, bit for bit."""

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, truth = actual[name], expected[name]
        if finding := wrong_shape(name, output, truth):
            return finding
        differing = int((output != truth).sum())
        largest = (output.to(torch.float64) - truth.to(torch.float64)).abs()
        finding = Finding(
            output=name,
            passed=differing == 0,
            detail="bit for bit",
            elements=truth.numel(),
            differing=differing,
            max_abs=float(largest.max()) if largest.numel() else 0.0,
        )
        if finding.passed:
            return finding
        return with_worst(finding, output.to(torch.float64), truth.to(torch.float64))

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return self.judge(name, actual, other)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None
