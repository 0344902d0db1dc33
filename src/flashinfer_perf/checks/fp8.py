"""FP8 outputs, judged by the distance between codes.

In values, one step of e4m3 is 12.5 %: a relative tolerance below that fails honest ties, and an absolute one that
helps them passes small values that are many codes apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.close import measured
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class Fp8Codes:
    """Passes when no code is further than ``max_steps`` from the right one and at most ``max_fraction`` differ at all.

    fp32 arithmetic errs by about 1e-6 before the rounding, so a code goes the other way only within 1e-6 of a tie:
    for fewer than one element in ten thousand. A hundred times that is allowed; a scale that is off by 2 % moves one
    code in six.
    """

    max_steps: int = 1
    max_fraction: float = 0.01

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output, truth = actual[name], expected[name]
        if finding := wrong_shape(name, output, truth):
            return finding
        steps = (ordinal(output) - ordinal(truth)).abs()
        values, right = output.to(torch.float64), truth.to(torch.float64)
        invalid = values.isnan() | (values.isinf() & (values != right))  # their codes follow that of the largest number
        differing, elements = int(((steps > 0) | invalid).sum()), truth.numel()
        passed = not bool(((steps > self.max_steps) | invalid).any()) and differing <= self.max_fraction * elements
        detail = f"codes at most {self.max_steps} apart, at most {self.max_fraction:.2%} of them"
        return measured(name, passed, detail, differing, values, right)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        return self.judge(name, actual, other)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


def ordinal(codes: torch.Tensor) -> torch.Tensor:
    """FP8 numbers as integers that count representable numbers from zero; both zeros are 0."""
    bits = codes.view(torch.uint8).to(torch.int16)
    magnitude = bits & 0x7F
    return torch.where(bits >= 0x80, -magnitude, magnitude)
