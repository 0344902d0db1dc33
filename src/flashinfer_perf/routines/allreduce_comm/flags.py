"""Flags of the allreduce_comm family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag

ALL_REDUCE, WITH_NORM = "allreduce", "ar_residual_rmsnorm"


@dataclass(frozen=True)
class AllReduceFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "allreduce_comm"

    num_tokens: int = flag(64, minimum=1, since=Since.UPSTREAM_0_6_18, help="Number of tokens.")
    hidden_size: int = flag(4096, minimum=1, since=Since.UPSTREAM_0_6_18, help="Hidden dimension size.")
    input_dtype: DType = flag(
        DType.BFLOAT16,
        choices=(DType.BFLOAT16, DType.FLOAT16),
        since=Since.UPSTREAM_0_6_18,
        help="Format of inputs and outputs.",
    )
    pattern: str = flag(
        ALL_REDUCE,
        choices=(ALL_REDUCE, WITH_NORM),
        since=Since.UPSTREAM_0_6_18,
        help="The sum over ranks alone, or with a residual added and its RMSNorm.",
    )
    eps: float = flag(1e-6, since=Since.OURS, help="Added to the mean square before its root.")
    validate: bool = flag(
        False, since=Since.UPSTREAM_0_6_18, help="Check the outputs before measuring, as --refcheck does."
    )
    enable_pdl: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Use programmatic dependent launch.")
    backends: tuple[str, ...] = backends_flag(since=Since.OURS)
