"""Flags of the sampling family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag

DISTRIBUTIONS = ("normal", "peaked", "uniform", "ties")


@dataclass(frozen=True)
class SamplingFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "sampling"

    batch_size: int = flag(minimum=1, help="Batch size (number of sequences).")
    vocab_size: int = flag(minimum=1, help="Vocabulary size.")
    input_dtype: DType = flag(
        DType.FLOAT32, choices=(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16), help="Format of logits."
    )
    top_k: int = flag(50, minimum=1, help="How many of the largest are kept.")
    top_p: float = flag(0.9, above=0, help="Probability mass that is kept, at most 1.")
    min_p: float = flag(0.1, minimum=0, help="Share of the largest probability below which tokens are dropped.")
    temperature: float = flag(1.0, above=0, help="What logits are divided by.")
    filter_apply_order: str = flag(
        "top_k_first", choices=("top_k_first", "joint"), help="Order of the top-k and the top-p filter."
    )
    num_speculate_tokens: int = flag(5, minimum=1, help="Draft tokens of speculative sampling.")
    max_len: int = flag(4096, minimum=1, help="Longest row of the top-k transforms.")
    num_rows: int | None = flag(None, minimum=1, help="Rows of the top-k transforms. Default: batch_size.")
    backends: tuple[str, ...] = backends_flag()
    enable_pdl: bool = flag(False, help="Use programmatic dependent launch.", since=Since.UPSTREAM_0_6_18)
    input_distribution: str = flag(
        "normal",
        choices=DISTRIBUTIONS,
        help="Distribution of logits, scores or probabilities: as upstream draws them, with few tokens holding the "
        "mass, nearly even, or with many equal ones.",
        since=Since.OURS,
    )

    def __post_init__(self) -> None:
        if self.num_rows is None:
            object.__setattr__(self, "num_rows", self.batch_size)


def rows(case: SamplingFlags) -> int:
    """``num_rows``, filled in."""
    assert case.num_rows is not None
    return case.num_rows
