"""FP4 outputs with block scales: judged by what a kernel's arithmetic allows, not bit for bit.

A kernel that rounds on its way moves a block's scale to the neighbouring code now and then, and all of the block's
elements with it. So scales are compared with the right ones, and elements with what is right under the output's own
scales.

Truths, in fp32 or fp64: for elements what ``element * scale`` should be, the global scale multiplied in; for scales
the largest magnitude of each block of that, divided by 6, before it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.checks.block_formats import BlockFormat, dequantise, numbers_of, rank_nearest, ranks_of
from flashinfer_perf.checks.close import with_worst
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.checks.statistics import cosine, relative_l2
from flashinfer_perf.core.record import Finding
from flashinfer_perf.formats.scale_layout import TILE_COLUMNS, TILE_ROWS, unswizzle_128x4
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

FALSE_ALARM = 1e-6
"""Probability that a right output has more differing codes than are allowed."""
ELEMENTS_AT_A_TIME = 1 << 22
"""Judged at a time: a dozen fp64 numbers each, 400 MiB."""


@dataclass(frozen=True)
class BlockScales:
    """Passes when no scale is further than a code from the right one, and not too many differ at all.

    Attributes:
        swizzled: the output is in 128x4 tiles; their padding is not looked at.
        max_fraction: expected share of differing codes; an output may have as many as that makes likely.
    """

    format: BlockFormat
    swizzled: bool
    max_fraction: float

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        found = scale_bytes(name, actual[name], expected[name], self.swizzled)
        if isinstance(found, Finding):
            return found
        right = self.format.encode(expected[name]).reshape(found.shape)
        return self._compare(name, found.long(), right, max_steps=1)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Two right outputs may lie on opposite sides of the truth. Tiles are not compared: their padding is free."""
        if self.swizzled:
            return None
        found, right = (outputs[name].view(torch.uint8).long() for outputs in (actual, other))
        return wrong_shape(name, found, right) or self._compare(name, found, right, max_steps=2)

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _compare(self, name: str, found: torch.Tensor, right: torch.Tensor, max_steps: int) -> Finding:
        steps = (found - right).abs()
        values, truth = self.format.decode(found), self.format.decode(right)
        differing = int((steps > 0).sum())
        far = bool(((steps > max_steps) | values.isnan()).any())
        fraction = max_steps * self.max_fraction
        finding = Finding(
            output=name,
            passed=not far and differing <= most(found.numel(), fraction),
            detail=f"scales at most {max_steps} code(s) apart, about {fraction:.2%} of them",
            elements=found.numel(),
            differing=differing,
            max_abs=float((values - truth).abs().max()),
            relative_l2=relative_l2(values, truth),
            cosine=cosine(values, truth),
        )
        return finding if finding.passed else with_worst(finding, values, truth)


@dataclass(frozen=True)
class BlockElements:
    """Passes when every element is right under its own block's scale or a step beside it, not too many are beside it,
    and all that is lost by quantisation is hardly more than exact arithmetic loses.

    Attributes:
        scales: name of the output with the block scales.
        swizzled: that output is in 128x4 tiles.
        max_fraction: expected share of elements a step beside; an output may have as many as that makes likely.
        max_loss: of the relative L2 norm of the error, in units of exact arithmetic's.
    """

    format: BlockFormat
    scales: str
    swizzled: bool
    max_fraction: float
    max_loss: float

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        truth, packed = expected[name], actual[name].view(torch.uint8)
        if finding := wrong_shape(name, packed, truth[..., ::2]):
            return finding
        scales = scale_bytes(self.scales, actual[self.scales], expected[self.scales], self.swizzled)
        if isinstance(scales, Finding):
            return scales
        wanted = expected[self.scales].reshape(scales.shape)
        tensors = (truth.flatten(0, -2), packed.flatten(0, -2), scales, wanted)
        rows = max(ELEMENTS_AT_A_TIME // truth.shape[-1], 1)
        parts = [self._sums(*slices) for slices in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]
        return self._finding(name, torch.stack(parts), tensors)

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Not judged: two right outputs differ in every element of a block of which the scales differ."""
        return None

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        return None

    def _sums(
        self, truth: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Of a few rows: differing elements, those too far off, squares of error, unavoidable error, truth and value,
        and truth times value.
        """
        right = truth.double().unflatten(-1, (-1, self.format.block))
        ranks = ranks_of(packed).unflatten(-1, (-1, self.format.block))
        scale, best = self.format.decode(scales)[..., None], self.format.decode(self.format.encode(wanted))[..., None]
        steps = torch.where(scale == 0, torch.zeros_like(ranks), (ranks - rank_nearest(right, scale)).abs())
        value, ideal = numbers_of(ranks) * scale, numbers_of(rank_nearest(right, best)) * best
        far = (steps > 1) | scale.isnan()
        squares = [part.square().sum() for part in (value - right, ideal - right, right, value)]
        return torch.stack([(steps > 0).sum().double(), far.sum().double(), *squares, (right * value).sum()])

    def _finding(self, name: str, parts: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> Finding:
        differing, far, error, unavoidable, truth, value, product = parts.sum(dim=0).tolist()
        elements = tensors[0].numel()
        loss, least = (math.sqrt(part / truth) if truth else math.sqrt(part) for part in (error, unavoidable))
        limit = self.max_loss * least + EXACT
        finding = Finding(
            output=name,
            passed=far == 0 and differing <= most(elements, self.max_fraction) and loss <= limit,
            detail=f"elements at most a step from the nearest under their own scale, about {self.max_fraction:.2%} of "
            f"them; quantisation error {loss:.3g} in relative L2, at most {limit:.3g}",
            elements=elements,
            differing=int(differing),
            relative_l2=loss,
            cosine=product / math.sqrt(truth * value) if truth * value > 0 else float(truth == value),
        )
        if finding.passed:
            return finding
        right, packed, scales, _ = tensors
        return with_worst(finding, dequantise(self.format, packed, scales), right.double())


EXACT = 1e-6
"""Quantisation error that is none: the truth may be kept in fp32."""


def most(count: int, fraction: float) -> int:
    """The number of differing codes that a right output exceeds once in a million cases."""
    from scipy.special import bdtrik

    return math.ceil(bdtrik(1 - FALSE_ALARM, count, fraction))


def scale_bytes(name: str, output: torch.Tensor, truth: torch.Tensor, swizzled: bool) -> torch.Tensor | Finding:
    """(rows, blocks) bytes of an output with scales, without its padding; a failed finding when its shape is wrong."""
    raw = output.view(torch.uint8)
    rows, blocks = truth.flatten(0, -2).shape
    if not swizzled:
        return wrong_shape(name, raw, truth) or raw.reshape(rows, blocks)
    padded = -(-rows // TILE_ROWS) * TILE_ROWS * -(-blocks // TILE_COLUMNS) * TILE_COLUMNS
    if raw.numel() == padded:
        return unswizzle_128x4(raw, rows, blocks)
    detail = f"{raw.numel()} bytes instead of the {padded} of 128x4 tiles"
    return Finding(name, passed=False, detail=detail, elements=truth.numel(), differing=truth.numel())
