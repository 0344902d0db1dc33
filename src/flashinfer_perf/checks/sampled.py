"""An output of which the truth is known in some rows only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.record import Finding

if TYPE_CHECKING:
    import torch

    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs


@dataclass(frozen=True)
class SampledRows:
    """Judges the rows (of the first dimension) whose truth is known; in the others only that they are numbers.

    Attributes:
        within: what is demanded of the rows.
        rows: (n,) int64, where the truth's rows stand in the output.
        of: how many rows the output has.
    """

    within: Close
    rows: torch.Tensor
    of: int

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        output = actual[name]
        if len(output) != self.of:
            text = f"{len(output)} rows instead of {self.of}"
            return Finding(name, passed=False, detail=text, elements=self.of, differing=self.of)
        not_numbers = int((~output.isfinite()).sum())
        if not_numbers:
            text = "NaN or infinite elements"
            return Finding(name, passed=False, detail=text, elements=output.numel(), differing=not_numbers)
        finding = self.within.judge(name, {name: output[self.rows.to(output.device)]}, expected)
        row, *rest = finding.worst_index or (None,)
        place = () if row is None else (int(self.rows[row]), *rest)
        coverage = f"in {len(self.rows)} of {self.of} rows, drawn with the seed"
        return dataclasses.replace(finding, worst_index=place, coverage=coverage)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """In all rows."""
        return self.within.agree(name, actual, other)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


def in_rows(within: Close, rows: torch.Tensor | None, of: int) -> Close | SampledRows:
    """The check itself, or of a sample of rows."""
    return within if rows is None else SampledRows(within, rows, of)
