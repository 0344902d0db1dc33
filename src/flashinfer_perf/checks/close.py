"""Floating-point outputs, element by element."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.checks.statistics import cosine, describe, relative_l2, unravel, worst_row_l2
from flashinfer_perf.core.record import Finding
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class Close:
    """Passes when |actual - expected| <= atol + rtol * |expected| for every element, and the relative L2 norm of the
    difference is within its own bound: single elements may use up their tolerance, all together may not. An infinity
    is matched by the same infinity only. A row is what lies along the last dimension.

    Attributes:
        rtol: relative to the expected element.
        atol: absolute.
        max_relative_l2: of the whole tensor; infinite where the elements' bounds are enough.
        why: where the numbers come from, for the reader of a mismatch.
        by_row: the norm is that of the worst row, so that one that is wrong cannot hide behind many right ones.
        of_row: added to atol, relative to the root mean square of the element's row.
    """

    rtol: float
    atol: float
    max_relative_l2: float
    why: str
    by_row: bool = False
    of_row: float = 0.0

    @property
    def text(self) -> str:
        of_what = " of a row" if self.by_row else ""
        norm = f", relative L2{of_what} {self.max_relative_l2:.3g}" if math.isfinite(self.max_relative_l2) else ""
        row = f" + {self.of_row:.3g} of the row's rms" if self.of_row else ""
        return f"rtol {self.rtol:.3g}, atol {self.atol:.3g}{row}{norm}: {self.why}"

    def allowed(self, expected: torch.Tensor) -> torch.Tensor:
        """The largest error of each element."""
        bound = self.atol + self.rtol * expected.abs()
        if self.of_row:
            bound += self.of_row * expected.square().mean(dim=-1, keepdim=True).sqrt()
        return bound

    def twice(self) -> Close:
        """The same with everything doubled."""
        numbers = {n: 2 * getattr(self, n) for n in ("rtol", "atol", "max_relative_l2", "of_row")}
        return dataclasses.replace(self, **numbers)  # type: ignore[arg-type]

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        return compare(name, actual[name], expected[name], self)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Two right outputs may lie on opposite sides of the truth."""
        return compare(name, actual[name], other[name], self.twice())

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


def compare(name: str, output: torch.Tensor, truth: torch.Tensor, within: Close) -> Finding:
    """The finding about two tensors of one shape."""
    if finding := wrong_shape(name, output, truth):
        return finding
    actual, expected = output.to(torch.float64), truth.to(torch.float64)
    same_infinity = (actual == expected) & expected.isinf()
    actual, expected = actual.masked_fill(same_infinity, 0), expected.masked_fill(same_infinity, 0)
    error = (actual - expected).abs()
    far = ~(error <= within.allowed(expected)) | expected.isinf()
    norm = worst_row_l2(actual, expected) if within.by_row else relative_l2(actual, expected)
    differing = int(far.sum())
    passed = differing == 0 and norm <= within.max_relative_l2
    finding = Finding(
        output=name,
        passed=passed,
        detail=within.text,
        elements=actual.numel(),
        differing=differing,
        max_abs=float(error.max()) if error.numel() else 0.0,
        relative_l2=norm,
        cosine=cosine(actual, expected),
    )
    return finding if passed else with_worst(finding, actual, expected)


def measured(
    name: str, passed: bool, detail: str, differing: int, actual: torch.Tensor, expected: torch.Tensor
) -> Finding:
    """A finding about two fp64 tensors with how far apart they are; of a failed one with the worst element, too."""
    finding = Finding(
        output=name,
        passed=passed,
        detail=detail,
        elements=expected.numel(),
        differing=differing,
        max_abs=float((actual - expected).abs().max()) if expected.numel() else 0.0,
        relative_l2=relative_l2(actual, expected),
        cosine=cosine(actual, expected),
    )
    return finding if passed else with_worst(finding, actual, expected)


def with_worst(finding: Finding, actual: torch.Tensor, expected: torch.Tensor) -> Finding:
    """The finding with statistics of both tensors and their worst element; NaN is worse than any number."""
    error = (actual - expected).abs().nan_to_num(nan=float("inf"))
    worst = unravel(int(error.flatten().argmax()), error.shape)
    return dataclasses.replace(
        finding, worst_index=worst, actual=describe(actual, worst), expected=describe(expected, worst)
    )
