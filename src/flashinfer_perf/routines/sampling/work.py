"""Bytes of the sampling family by the documented formulas; FLOPs are counted as none."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.sampling.flags import SamplingFlags, rows

FP32 = INT32 = 4
INT64 = 8


def sample(case: SamplingFlags, dtype: DType = DType.FLOAT32) -> Work:
    """Probabilities or logits once, and a token to a row."""
    return Work(flops=0, bytes=case.batch_size * case.vocab_size * dtype.bytes + case.batch_size * INT32)


def filtered(case: SamplingFlags, read: DType, written: DType) -> Work:
    """A number to each number."""
    return Work(flops=0, bytes=case.batch_size * case.vocab_size * (read.bytes + written.bytes))


def top_k(case: SamplingFlags) -> Work:
    """The input, and k values with 64-bit indices to a row."""
    pair = case.input_dtype.bytes + INT64
    return Work(flops=0, bytes=case.batch_size * (case.vocab_size * case.input_dtype.bytes + case.top_k * pair))


def ragged_transform(case: SamplingFlags) -> Work:
    """The scores, and k indices to a row."""
    row = case.max_len * case.input_dtype.bytes + case.top_k * INT32
    return Work(flops=0, bytes=rows(case) * row)


def page_table_transform(case: SamplingFlags) -> Work:
    """The same, and the k entries of the page table that are looked up; upstream counts the whole table."""
    looked_up = rows(case) * min(case.top_k, case.max_len) * INT32
    return Work(flops=0, bytes=ragged_transform(case).bytes + looked_up)


def speculate(case: SamplingFlags, all_accepted: float) -> Work:
    """What a chain has to read: two probabilities of every draft token, then one row of the target's probabilities
    and, where a token was rejected, one of the draft's. Upstream counts all rows of both.

    Args:
        all_accepted: expected number of sequences all of whose draft tokens are accepted.
    """
    tokens = case.batch_size * case.num_speculate_tokens
    read = tokens * (INT32 + 2 * FP32) + (2 * case.batch_size - all_accepted) * case.vocab_size * FP32
    written = case.batch_size * (case.num_speculate_tokens + 1 + 2) * INT32
    return Work(flops=0, bytes=read + written)
