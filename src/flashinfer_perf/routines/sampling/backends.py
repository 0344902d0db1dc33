"""What the backends of samplers and top-k kernels need."""

from __future__ import annotations

from flashinfer_perf.core.requirement import Requirement, capability, case_rule, package
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.routines.sampling.flags import SamplingFlags, rows

DOCUMENTED = "7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0"
"""Where the documented matrix lists ``cuda``."""
LIMIT = 1 << 32


def _fits(text: str, elements: object) -> Requirement:
    return case_rule(
        f"fewer than 2^32 {text}",
        lambda case: elements(case) < LIMIT,  # type: ignore[operator]
        f"FlashInfer's kernels count elements in 32 bits, and there are 2^32 or more {text}; use --backends torch",
    )


def vocabulary_elements(case: SamplingFlags) -> int:
    """Of logits or probabilities."""
    return case.batch_size * case.vocab_size


def target_elements(case: SamplingFlags) -> int:
    """Of the target model's probabilities, which are more than the draft's."""
    return vocabulary_elements(case) * (case.num_speculate_tokens + 1)


def score_elements(case: SamplingFlags) -> int:
    """Of the transforms' scores."""
    return rows(case) * case.max_len


_ANY: tuple[Requirement, ...] = (capability(minimum="7.5"), package("flashinfer", extra="flashinfer"))
NEEDS_CUDA = (*_ANY, _fits("probabilities or logits", vocabulary_elements))
CHAIN_NEEDS = (*_ANY, _fits("target probabilities", target_elements))
TRANSFORMS_NEED = (*_ANY, _fits("scores", score_elements))
NEEDS_TRITON: tuple[Requirement, ...] = (capability(minimum="8.0"), triton_installed)
