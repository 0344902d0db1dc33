"""Outputs of block quantisers, of which the exact input is known: a code may differ from the right one only where
arithmetic explains it.

A kernel multiplies by an approximate reciprocal where mathematics divides, so what it rounds errs by a few units in
the last place of fp32. That decides nothing but ties, of which 16-bit inputs have many. A code is right when some
value within ``reach`` of the exact one is rounded to it. For a scale that is the right code or, beside a tie, its
neighbour; for an element the same under its own block's scale, as it was written. Where neither scale nor global scale
is anything but a power of two, elements have no reach: multiplying by such a reciprocal is exact.

Truths: for elements what ``element * scale`` should be, fp32; for scales the largest magnitude of each block of that,
divided by that of an element, fp64. Both in the order of the rows, whatever the output's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.checks.close import measured
from flashinfer_perf.checks.scaled_elements import ScaledElements
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.formats import scale_layout
from flashinfer_perf.formats.shuffle import unshuffle_rows
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Placed:
    """How an output lies in memory.

    Attributes:
        layout: of the scales: 128x4, 8x4 or linear; each entry of a batch alone.
        shape: of the output with the scales, as documented.
        shuffled: rows are in the order that TensorRT-LLM's kernels read, of elements and scales alike.
    """

    layout: str
    shape: tuple[int, ...]
    shuffled: bool = False

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, …) of an output in the order of the input."""
        return unshuffle_rows(rows) if self.shuffled else rows

    def scale_bytes(self, name: str, output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor | Finding:
        """(…, rows, blocks) bytes of an output with scales, in the order of the input; a failed finding when its shape
        is not the documented one, or its padding is not zero.
        """
        raw = output.view(torch.uint8)
        detail = f"shape {tuple(raw.shape)} instead of {self.shape}"
        if tuple(raw.shape) == self.shape:
            unused = scale_layout.padding(self.layout, truth.shape, raw.device)
            dirty = int((raw.reshape(unused.shape)[unused] != 0).sum())
            if not dirty:
                return self.in_order(scale_layout.restore(raw, self.layout, truth.shape))
            detail = f"{dirty} of {int(unused.sum())} bytes of padding are not zero"
        return Finding(name, passed=False, detail=detail, elements=truth.numel(), differing=truth.numel())


@dataclass(frozen=True)
class QuantisedScales:
    """Passes when every scale is the right code, or the one beside it where arithmetic explains that, in the right
    place, and padding is zero.

    Attributes:
        reach: relative error of what is rounded to a scale.
    """

    format: BlockFormat
    placed: Placed
    reach: float

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth = expected[name]
        found = self.placed.scale_bytes(name, actual[name], truth)
        if isinstance(found, Finding):
            return found
        codes, right = found.long(), self.format.encode(truth)
        low, high = self.format.encode(truth * (1 - self.reach)), self.format.encode(truth * (1 + self.reach))
        low = torch.where(truth < SMALLEST_NORMAL, torch.zeros_like(low), low)  # flushed to zero, or not
        passed = bool(((codes >= low) & (codes <= high)).all())
        values, wanted = self.format.decode(codes), self.format.decode(right)
        detail = f"scales exact but for ties within {self.reach:.2g}, in {self.placed.layout}, padded with zeros"
        return measured(name, passed, detail, int((codes != right).sum()), values, wanted)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Two right outputs may decide a tie differently, and nothing else."""
        one, two = (outputs[name].view(torch.uint8).long() for outputs in (actual, other))
        if finding := wrong_shape(name, one, two):
            return finding
        steps = (one - two).abs()
        return Finding(
            output=name,
            passed=not bool((steps > 1).any()),
            detail="scales at most a code apart",
            elements=steps.numel(),
            differing=int((steps > 0).sum()),
        )

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None


@dataclass(frozen=True)
class QuantisedElements(ScaledElements):
    """Passes when every element is the nearest under its own block's scale, or the one beside it where arithmetic
    explains that, and all that is lost by quantisation is hardly more than exact arithmetic loses.

    A block whose scale is zero is worth nothing whatever its elements are; still they must be what a quantiser can
    make of them: zeros, the nearest, or the largest number with the value's sign, as after a division by zero.

    Attributes:
        reach: relative error of what is rounded to an element, unless its scale is exact.
        exact_global_scale: the global scale is a power of two, or there is none.
    """

    placed: Placed
    reach: float
    exact_global_scale: bool

    @property
    def rule(self) -> str:
        return f"elements exact under their own scale but for ties within {self.reach:.2g}"

    def scale_bytes(self, output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor | Finding:
        return self.placed.scale_bytes(self.scales, output, truth)

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        return self.placed.in_order(rows)

    def verdicts(
        self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nearest = self.format.nearest(right, self.format.decode(scales)[..., None])
        return (ranks != nearest) & (scales != 0)[..., None], ~self._possible(right, ranks, scales)

    def in_values(
        self, truth: torch.Tensor, raw: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What elements are worth, and what they should be: what they are, where that is explained, else what the
        nearest under the same scales are worth. Where all are explained and the loss alone is too large, the truth.
        """
        scale = self.format.decode(scales)[..., None]
        right, ranks = self.format.by_blocks(truth.double()), self.format.by_blocks(self.format.ranks(raw))
        value = self.format.values(ranks) * scale
        possible = self._possible(right, ranks, scales)
        wanted = torch.where(possible, value, self.format.values(self.format.nearest(right, scale)) * scale)
        return value.flatten(-2), (right if bool(possible.all()) else wanted).flatten(-2)

    def _possible(self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self._explained(right, ranks, scales) | self._of_no_worth(right, ranks, scales)

    def _explained(self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        scale = self.format.decode(scales)[..., None]
        exact = torch.frexp(scale).mantissa == 0.5 if self.exact_global_scale else torch.zeros_like(scale).bool()
        reach = torch.where(exact, torch.zeros_like(scale), torch.full_like(scale, self.reach))
        bounds = self.format.nearest(right, scale, -reach), self.format.nearest(right, scale, reach)
        return (ranks >= torch.minimum(*bounds)) & (ranks <= torch.maximum(*bounds)) & ~scale.isnan()

    def _of_no_worth(self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        largest = len(self.format.elements) - 1
        divided = torch.where(right == 0, ranks == largest, ranks == largest * right.sign().long())
        return ((ranks == 0) | divided) & (scales == 0)[..., None]
