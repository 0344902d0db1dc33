"""Angles of rotation: how far each pair of dimensions turns from one position to the next, in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.rope.flags import RopeFlags, rotated


@dataclass(frozen=True)
class Frequencies:
    """Radians per position of the pairs 0 … rotary_dim / 2 - 1, (pairs,) fp64.

    Attributes:
        plain: theta^(-2 j / rotary_dim).
        scaled: those that are used.
        sensitivity: relative change of ``scaled`` per relative change of ``plain``: 1, and more where Llama 3.1 blends.
    """

    plain: torch.Tensor
    scaled: torch.Tensor
    sensitivity: torch.Tensor


def frequencies(case: RopeFlags, device: str) -> Frequencies:
    """Su et al., RoFormer (arXiv:2104.09864), section 3.2.2; divided by ``rope_scale`` (linear interpolation)."""
    plain = _plain(case, device)
    return Frequencies(plain, plain / case.rope_scale, torch.ones_like(plain))


def llama31_frequencies(case: RopeFlags, device: str) -> Frequencies:
    """Llama 3.1's: those that turn often in the old context stay, slow ones are divided by ``rope_scale``, and in
    between it is a blend, linear in how often they turn. From the code published with the model (``apply_scaling``).
    """
    plain = _plain(case, device)
    turns = case.old_context_len * plain / (2 * math.pi)
    kept = (turns - case.low_freq_factor) / (case.high_freq_factor - case.low_freq_factor)
    blended = (1 - kept) * plain / case.rope_scale + kept * plain
    scaled = torch.where(turns > case.high_freq_factor, plain, blended)
    scaled = torch.where(turns < case.low_freq_factor, plain / case.rope_scale, scaled)
    return Frequencies(plain, scaled, _sensitivity(case, plain, scaled, turns))


def _plain(case: RopeFlags, device: str) -> torch.Tensor:
    pairs = torch.arange(rotated(case) // 2, dtype=torch.float64, device=device)
    return case.rope_theta ** (-2 * pairs / rotated(case))


def _sensitivity(case: RopeFlags, plain: torch.Tensor, scaled: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """1, and where it is blended what the share adds: its own change, times the distance of the two ends."""
    slope = turns / (case.high_freq_factor - case.low_freq_factor)
    added = slope * (1 - 1 / case.rope_scale) * plain / scaled
    nearly = 1.01  # rounding moves what lies at an end into the blend or out of it
    blends = (turns <= case.high_freq_factor * nearly) & (turns * nearly >= case.low_freq_factor)
    return torch.where(blends, 1 + added.abs(), torch.ones_like(added))
