"""What routines demand of their flags. Each names only flags that it reads: others are not looked at."""

from __future__ import annotations

from flashinfer_perf.core.routine import Rule
from flashinfer_perf.routines.sampling.flags import rows

TOP_K = Rule(lambda case: case.top_k <= case.vocab_size, "top_k ({top_k}) must not exceed vocab_size ({vocab_size})")
TOP_P = Rule(lambda case: case.top_p <= 1, "top_p ({top_p}) must be in (0, 1]: it is a share of the probability")
MIN_P = Rule(lambda case: case.min_p <= 1, "min_p ({min_p}) must not exceed 1: no token would be left")
A_TABLE_TO_A_ROW = Rule(
    lambda case: rows(case) <= case.batch_size,
    "num_rows ({num_rows}) must not exceed batch_size ({batch_size}): row i reads page table i, and there are as many "
    "as sequences",
)
