"""What routines demand of their flags. Each names only flags that it reads: others are not looked at."""

from __future__ import annotations

from flashinfer_perf.core.routine import Rule
from flashinfer_perf.routines.sampling.inputs import rows

TOP_K = Rule(lambda case: case.top_k <= case.vocab_size, "top_k ({top_k}) must not exceed vocab_size ({vocab_size})")
TOP_P = Rule(lambda case: case.top_p <= 1, "top_p ({top_p}) must be in (0, 1]: it is a share of the probability")
MIN_P = Rule(lambda case: case.min_p <= 1, "min_p ({min_p}) must not exceed 1: no token would be left")
OFFSETS_FIT_INT32 = Rule(
    lambda case: rows(case) * case.max_len < 1 << 31,
    "offsets are 32-bit integers: rows times max_len ({max_len}) must stay below 2^31",
)
TABLES_FIT_INT32 = Rule(
    lambda case: case.batch_size * case.max_len < 1 << 31,
    "page table entries are 32-bit integers: batch_size ({batch_size}) times max_len ({max_len}) must stay below 2^31",
)
A_TABLE_TO_A_ROW = Rule(
    lambda case: case.num_rows is None or case.num_rows <= case.batch_size,
    "num_rows ({num_rows}) must not exceed batch_size ({batch_size}): row i reads page table i, and there are as many "
    "as sequences",
)
