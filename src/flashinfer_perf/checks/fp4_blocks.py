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

from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.checks.close import measured
from flashinfer_perf.checks.scaled_elements import ScaledElements
from flashinfer_perf.checks.shape import wrong_shape
from flashinfer_perf.core.record import Finding
from flashinfer_perf.formats.scale_layout import TILE_COLUMNS, TILE_ROWS, unswizzle_128x4
from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.problem import Outputs

FALSE_ALARM = 1e-6
"""Probability that a right output has more differing codes than are allowed."""


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
        passed = not far and differing <= most(found.numel(), fraction)
        detail = f"scales at most {max_steps} code(s) apart, about {fraction:.2%} of them"
        return measured(name, passed, detail, differing, values, truth)


@dataclass(frozen=True)
class BlockElements(ScaledElements):
    """Passes when every element is right under its own block's scale or a step beside it, not too many are beside it,
    and all that is lost by quantisation is hardly more than exact arithmetic loses.

    Attributes:
        swizzled: the output with the scales is in 128x4 tiles.
        max_fraction: expected share of elements a step beside; an output may have as many as that makes likely.
    """

    swizzled: bool
    max_fraction: float

    @property
    def rule(self) -> str:
        return f"elements at most a step from the nearest under their own scale, about {self.max_fraction:.2%} of them"

    def scale_bytes(self, output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor | Finding:
        return scale_bytes(self.scales, output, truth, self.swizzled)

    def verdicts(
        self, right: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Elements under a scale of 0 are not looked at: they are worth nothing whatever they are."""
        scale = self.format.decode(scales)[..., None]
        steps = (ranks - self.format.nearest(right, scale)).abs().masked_fill(scale == 0, 0)
        return steps > 0, (steps > 1) | scale.isnan()

    def most_differing(self, elements: int) -> float:
        return most(elements, self.max_fraction)


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
