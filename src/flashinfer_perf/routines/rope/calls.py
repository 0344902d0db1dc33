"""What the routines that compute cosines and sines share: flags, arguments, shown lines."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.rope import inputs
from flashinfer_perf.routines.rope.flags import RopeFlags, rotated
from flashinfer_perf.run.problem import Problem, Shown

SHAPE = ("batch_size", "seq_len", "num_qo_heads", "num_kv_heads", "head_dim", "rotary_dim", "input_dtype")
FLAGS = (*SHAPE, "rope_scale", "rope_theta", "interleave")
LLAMA31 = ("low_freq_factor", "high_freq_factor", "old_context_len")
LLAMA31_FLAGS = (*FLAGS, *LLAMA31)
ROTATED = ("q_rope", "k_rope")
"""What these calls return: new tensors, as upstream asks for them."""


def _options(case: RopeFlags, llama31: bool) -> dict[str, Any]:
    """In the order in which they are shown."""
    more = {name: getattr(case, name) for name in LLAMA31} if llama31 else {}
    return {
        "rotary_dim": rotated(case),
        "rope_scale": case.rope_scale,
        "rope_theta": case.rope_theta,
        "interleave": case.interleave,
        **more,
    }


def shown(case: RopeFlags, llama31: bool = False) -> tuple[Shown, ...]:
    """How it is rotated."""
    return inputs.values(**_options(case, llama31))


def arguments(case: RopeFlags, problem: Problem, llama31: bool = False) -> dict[str, Any]:
    """FlashInfer's: every tensor of the problem, and how it is rotated."""
    return {**problem.tensors, **_options(case, llama31)}


def eager_arguments(case: RopeFlags, problem: Problem, llama31: bool = False) -> dict[str, Any]:
    """Those of the functions in PyTorch, which take the scaling as a function."""
    options = {name: getattr(case, name) for name in ("rotary_dim", "interleave", "rope_theta")}
    scaling = partial(scaled_as_llama31, case) if llama31 else partial(scaled, case)
    return {**problem.tensors, **options, "scaling": scaling}


def scaled(case: RopeFlags, frequencies: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of positions."""
    return frequencies / case.rope_scale


def scaled_as_llama31(case: RopeFlags, frequencies: torch.Tensor) -> torch.Tensor:
    """The piecewise definition as one blend, whose share is clamped."""
    turns = frequencies * (case.old_context_len / (2 * math.pi))
    kept = ((turns - case.low_freq_factor) / (case.high_freq_factor - case.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * (frequencies / case.rope_scale) + kept * frequencies


def triton_arguments(case: RopeFlags, problem: Problem, llama31: bool = False) -> dict[str, Any]:
    """Those of this project's Triton kernel, which takes the scaling as numbers."""
    from flashinfer_perf.kernels.rope import Scaling

    options = {name: getattr(case, name) for name in ("rotary_dim", "interleave", "rope_theta")}
    factors = tuple(getattr(case, name) for name in LLAMA31) if llama31 else ()
    return {**problem.tensors, **options, "scaling": Scaling(case.rope_scale, *factors)}
