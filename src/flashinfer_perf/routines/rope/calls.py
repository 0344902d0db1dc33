"""What the routines that compute cosines and sines share: flags, problem, calls.

They differ in how frequencies are scaled and in how the position of a token is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flashinfer_perf.core.routine import Rule
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.rope import inputs, reference, work
from flashinfer_perf.routines.rope.flags import LLAMA31_RULES, WHOLE_PAIRS, RopeFlags, rotated
from flashinfer_perf.routines.rope.frequencies import Frequencies, frequencies, llama31_frequencies
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

SHAPE = ("batch_size", "seq_len", "num_qo_heads", "num_kv_heads", "head_dim", "rotary_dim", "input_dtype")
ROTATED = ("q_rope", "k_rope")
"""What these calls return: new tensors, as upstream asks for them."""


def scaled(case: RopeFlags, frequencies: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of positions."""
    return frequencies / case.rope_scale


def scaled_as_llama31(case: RopeFlags, frequencies: torch.Tensor) -> torch.Tensor:
    """The piecewise definition as one blend, whose share is clamped."""
    turns = frequencies * (case.old_context_len / (2 * math.pi))
    kept = ((turns - case.low_freq_factor) / (case.high_freq_factor - case.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * (frequencies / case.rope_scale) + kept * frequencies


@dataclass(frozen=True)
class Scaling:
    """Of the frequencies.

    Attributes:
        truth: what they are, for the reference and the checks.
        in_torch: the function that the backend ``torch`` applies to them.
        factors: flags that it reads beside ``rope_scale``.
        rules: what is demanded of the flags.
    """

    truth: Callable[[RopeFlags, str], Frequencies]
    in_torch: Callable[[RopeFlags, torch.Tensor], torch.Tensor]
    factors: tuple[str, ...]
    rules: tuple[Rule, ...]

    @property
    def uses(self) -> tuple[str, ...]:
        """All flags of a routine that scales like this."""
        return (*SHAPE, "rope_scale", "rope_theta", "interleave", *self.factors)


PLAIN = Scaling(frequencies, scaled, (), WHOLE_PAIRS)
LLAMA31 = Scaling(
    llama31_frequencies, scaled_as_llama31, ("low_freq_factor", "high_freq_factor", "old_context_len"), LLAMA31_RULES
)


@dataclass(frozen=True)
class Places:
    """How the position of each token is given: the tensors that say it, the reference that takes them, the work."""

    tensors: Callable[[RopeFlags, TensorFactory], dict[str, torch.Tensor]]
    reference: Callable[..., Mapping[str, torch.Tensor]]
    work: Callable[[RopeFlags], Work]


BY_OFFSETS = Places(inputs.sequences, reference.by_offsets, work.by_offsets)
BY_POSITIONS = Places(inputs.position_ids, reference.by_positions, work.by_positions)


def problem_of(case: RopeFlags, make: TensorFactory, scaling: Scaling, places: Places) -> Problem:
    """Query and key, and where their tokens are."""
    tensors = {**inputs.query_and_key(case, make), **places.tensors(case, make)}
    used = scaling.truth(case, make.device)
    return Problem(
        tensors=tensors,
        reference=partial(places.reference, frequencies=used.scaled, heads=inputs.heads_of(case)),
        work=places.work(case),
        checks=inputs.checks(case, make, ROTATED, used),
        ranks=make.ranks,
        shown=(*inputs.shapes(tensors), *inputs.values(**_options(case, scaling))),
    )


def library_call(function: Callable[..., Any], case: RopeFlags, problem: Problem, scaling: Scaling) -> Launch:
    """FlashInfer's: every tensor of the problem, and how it is rotated."""
    return Launch(function, kwargs={**problem.tensors, **_options(case, scaling)}, returns=ROTATED)


def eager_call(function: Callable[..., Any], case: RopeFlags, problem: Problem, scaling: Scaling) -> Launch:
    """Of the functions in PyTorch, which take the scaling as a function."""
    return _ours(function, case, problem, partial(scaling.in_torch, case))


def triton_call(function: Callable[..., Any], case: RopeFlags, problem: Problem, scaling: Scaling) -> Launch:
    """Of this project's Triton kernel, which takes the scaling as numbers."""
    from flashinfer_perf.kernels import rope

    return _ours(function, case, problem, rope.Scaling(case.rope_scale, *_values(case, scaling.factors)))


def _ours(function: Callable[..., Any], case: RopeFlags, problem: Problem, scaling: Any) -> Launch:
    options = {name: getattr(case, name) for name in ("rotary_dim", "interleave", "rope_theta")}
    return Launch(function, kwargs={**problem.tensors, **options, "scaling": scaling}, returns=ROTATED)


def _options(case: RopeFlags, scaling: Scaling) -> dict[str, Any]:
    """In the order in which they are shown."""
    return {
        "rotary_dim": rotated(case),
        "rope_scale": case.rope_scale,
        "rope_theta": case.rope_theta,
        "interleave": case.interleave,
        **dict(zip(scaling.factors, _values(case, scaling.factors), strict=True)),
    }


def _values(case: RopeFlags, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(case, name) for name in names)
