"""Flags of the RoPE family, and what its routines demand of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag
from flashinfer_perf.core.routine import Rule

NHD, HND = "NHD", "HND"


@dataclass(frozen=True)
class RopeFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "rope"

    batch_size: int = flag(minimum=1, help="Batch size (number of sequences).")
    seq_len: int = flag(minimum=1, help="Tokens of each sequence, all of which are rotated.")
    num_qo_heads: int = flag(minimum=1, help="Heads of the query.")
    num_kv_heads: int = flag(minimum=1, help="Heads of the key; MLA has one, and does not read it.")
    head_dim: int = flag(minimum=1, help="Head dimension; for MLA with both parts: 576 for DeepSeek.")
    rotary_dim: int | None = flag(None, minimum=1, help="Dimensions that are rotated; head_dim by default.")
    no_rope_dim: int = flag(0, minimum=0, help="Dimensions that are quantised without rotation: 512 for DeepSeek.")
    input_dtype: DType = flag(
        DType.FLOAT16, choices=(DType.FLOAT16, DType.BFLOAT16), help="Format of queries, keys and values."
    )
    quant_dtype: DType = flag(
        DType.FP8_E4M3, choices=(DType.FP8_E4M3, DType.FP8_E5M2), help="Format of quantised outputs."
    )
    rope_scale: float = flag(1.0, above=0, help="What frequencies are divided by; with 1, Llama 3.1 scales nothing.")
    rope_theta: float = flag(10000.0, above=0, help="Base of the frequencies.")
    interleave: bool = flag(False, help="Rotate neighbours (GPT-J), instead of halves (NeoX).")
    page_size: int = flag(16, minimum=1, help="Tokens in a page of the KV cache.")
    kv_layout: str = flag(NHD, choices=(NHD, HND), help="Whether tokens or heads come first in a page.")
    low_freq_factor: float = flag(1.0, minimum=0, help="Llama 3.1: turns in the old context below which all is scaled.")
    high_freq_factor: float = flag(4.0, above=0, help="Llama 3.1: turns in the old context above which nothing is.")
    old_context_len: int = flag(8192, minimum=1, help="Llama 3.1: length of the old context.")
    backends: tuple[str, ...] = backends_flag()
    quant_scale_q: float = flag(1.0, above=0, since=Since.OURS, help="What queries are multiplied by before FP8.")
    quant_scale_kv: float = flag(
        1.0, above=0, since=Since.OURS, help="What keys and values are multiplied by before FP8."
    )
    enable_pdl: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Enable programmatic dependent launch.")

    def __post_init__(self) -> None:
        if self.rotary_dim is None:
            object.__setattr__(self, "rotary_dim", self.head_dim)

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.batch_size * self.seq_len


def rotated(case: RopeFlags) -> int:
    """``rotary_dim``, filled in."""
    assert case.rotary_dim is not None
    return case.rotary_dim


def rotated_of_mla(case: RopeFlags) -> int:
    """What ``no_rope_dim`` leaves of a head."""
    return case.head_dim - case.no_rope_dim


WHOLE_PAIRS = (
    Rule(
        lambda case: rotated(case) <= case.head_dim,
        "rotary_dim ({rotary_dim}) must not be above head_dim ({head_dim})",
    ),
    Rule(
        lambda case: rotated(case) % 2 == 0,
        "rotary_dim ({rotary_dim}) must be even, since dimensions are rotated in pairs; it is head_dim where not given",
    ),
)
WHOLE_PAIRS_OF_MLA = (
    Rule(
        lambda case: rotated_of_mla(case) > 0,
        "no_rope_dim ({no_rope_dim}) must be below head_dim ({head_dim}), which includes both parts: "
        "--head_dim 576 --no_rope_dim 512 for DeepSeek",
    ),
    Rule(
        lambda case: rotated_of_mla(case) % 2 == 0,
        "head_dim ({head_dim}) minus no_rope_dim ({no_rope_dim}) must be even, since dimensions are rotated in pairs",
    ),
)
LONGEST_CONTEXT = 1 << 24
"""Up to here fp32, in which kernels compute, has every whole number."""
LLAMA31_RULES = (
    *WHOLE_PAIRS,
    Rule(
        lambda case: case.high_freq_factor > case.low_freq_factor,
        "high_freq_factor ({high_freq_factor}) must be above low_freq_factor ({low_freq_factor}): Llama 3.1's scaling "
        "divides by their difference",
    ),
    Rule(
        lambda case: case.old_context_len <= LONGEST_CONTEXT,
        "old_context_len ({old_context_len}) must not be above 16777216, from which on fp32 does not have every length",
    ),
)
