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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.block_formats import BlockFormat, nearest
from flashinfer_perf.checks.close import with_worst
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.checks.statistics import cosine, relative_l2
from flashinfer_perf.core.record import Finding
from flashinfer_perf.formats import scale_layout
from flashinfer_perf.formats.shuffle import unshuffle_rows
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

SMALLEST_NORMAL = 2.0**-126
ELEMENTS_AT_A_TIME = 1 << 21
"""Judged at a time: two dozen fp64 numbers each, 400 MiB."""


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
        finding = Finding(
            output=name,
            passed=passed,
            detail=f"scales exact but for ties within {self.reach:.2g}, in {self.placed.layout}, padded with zeros",
            elements=codes.numel(),
            differing=int((codes != right).sum()),
            max_abs=float((values - wanted).abs().max()),
            relative_l2=relative_l2(values, wanted),
            cosine=cosine(values, wanted),
        )
        return finding if passed else with_worst(finding, values, wanted)

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
class QuantisedElements:
    """Passes when every element is the nearest under its own block's scale, or the one beside it where arithmetic
    explains that, and all that is lost by quantisation is hardly more than exact arithmetic loses.

    A block whose scale is zero is worth nothing whatever its elements are; still they must be what a quantiser can
    make of them: zeros, the nearest, or the largest number with the value's sign, as after a division by zero.

    Attributes:
        scales: name of the output with the block scales.
        reach: relative error of what is rounded to an element, unless its scale is exact.
        exact_global_scale: the global scale is a power of two, or there is none.
        max_loss: of the relative L2 norm of the error, in units of exact arithmetic's.
    """

    format: BlockFormat
    scales: str
    placed: Placed
    reach: float
    exact_global_scale: bool
    max_loss: float

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth, wanted, raw = expected[name], expected[self.scales], actual[name].view(torch.uint8)
        if finding := wrong_shape(name, raw, truth[..., ::2] if self.format.packed else truth):
            return finding
        scales = self.placed.scale_bytes(self.scales, actual[self.scales], wanted)
        if isinstance(scales, Finding):
            return scales
        raw = self.placed.in_order(raw)
        tensors = tuple(tensor.flatten(0, -2) for tensor in (truth, raw, scales, wanted))
        rows = max(ELEMENTS_AT_A_TIME // truth.shape[-1], 1)
        parts = [self._sums(*slices) for slices in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]
        return self._finding(name, torch.stack(parts), tensors)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Not judged: two right outputs differ in every element of a block of which the scales differ."""
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _sums(self, truth: torch.Tensor, raw: torch.Tensor, scales: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Of a few rows: differing elements, unexplained ones, squares of error, unavoidable error, truth and value,
        and truth times value.
        """
        right = truth.double().unflatten(-1, (-1, self.format.block))
        ranks = self.format.ranks(raw).unflatten(-1, (-1, self.format.block))
        scale, best = self.format.decode(scales)[..., None], self.format.decode(self.format.encode(wanted))[..., None]
        best_ranks = self._nearest(right, best)
        value, ideal = self.format.values(ranks) * scale, self.format.values(best_ranks) * best
        differing = (ranks != self._nearest(right, scale)) & (scales != 0)[..., None]
        explained = self._explained(right, ranks, scale) | self._of_no_worth(right, ranks, scales)
        squares = [part.square().sum() for part in (value - right, ideal - right, right, value)]
        return torch.stack([differing.sum().double(), (~explained).sum().double(), *squares, (right * value).sum()])

    def _nearest(self, values: torch.Tensor, scale: torch.Tensor, error: float | torch.Tensor = 0.0) -> torch.Tensor:
        """Ranks of the elements nearest to values * (1 + error) / scale; 0 under a scale of 0 or one that is none."""
        quotient = (values.abs() * (1 + error) / scale).nan_to_num(nan=0.0, posinf=0.0)
        return nearest(quotient, self.format.elements) * values.sign().long()

    def _explained(self, right: torch.Tensor, ranks: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        exact = torch.frexp(scale).mantissa == 0.5 if self.exact_global_scale else torch.zeros_like(scale).bool()
        reach = torch.where(exact, torch.zeros_like(scale), torch.full_like(scale, self.reach))
        bounds = self._nearest(right, scale, -reach), self._nearest(right, scale, reach)
        return (ranks >= torch.minimum(*bounds)) & (ranks <= torch.maximum(*bounds)) & ~scale.isnan()

    def _of_no_worth(self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        largest = len(self.format.elements) - 1
        divided = torch.where(right == 0, ranks == largest, ranks == largest * right.sign().long())
        return ((ranks == 0) | divided) & (scales == 0)[..., None]

    def _finding(self, name: str, parts: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> Finding:
        differing, unexplained, error, unavoidable, truth, value, product = parts.sum(dim=0).tolist()
        loss, least = (math.sqrt(part / truth) if truth else math.sqrt(part) for part in (error, unavoidable))
        limit = self.max_loss * least + EXACT
        finding = Finding(
            output=name,
            passed=unexplained == 0 and loss <= limit,
            detail=f"elements exact under their own scale but for ties within {self.reach:.2g}; quantisation error "
            f"{loss:.3g} in relative L2, at most {limit:.3g}",
            elements=tensors[0].numel(),
            differing=int(differing),
            relative_l2=loss,
            cosine=product / math.sqrt(truth * value) if truth * value > 0 else float(truth == value),
        )
        if finding.passed:
            return finding
        return with_worst(finding, *self._dequantised(*tensors[:3]))

    def _dequantised(
        self, truth: torch.Tensor, raw: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What elements are worth, and what they should be: what they are, where that is explained, else what the
        nearest under the same scales are worth. Where all are explained and the loss alone is too large, the truth.
        """
        scale = self.format.decode(scales)[..., None]
        right = truth.double().unflatten(-1, (-1, self.format.block))
        ranks = self.format.ranks(raw).unflatten(-1, (-1, self.format.block))
        value = self.format.values(ranks) * scale
        explained = self._explained(right, ranks, scale) | self._of_no_worth(right, ranks, scales)
        wanted = torch.where(explained, value, self.format.values(self._nearest(right, scale)) * scale)
        return value.flatten(-2), (right if bool(explained.all()) else wanted).flatten(-2)


EXACT = 1e-6
"""Quantisation error that is none: the truth may be kept in fp32."""
