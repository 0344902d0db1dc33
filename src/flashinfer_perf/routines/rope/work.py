"""Bytes of the RoPE family, by the documented formulas; FLOPs are documented as 0.

What a kernel reads beside these (indptr, offsets, page tables, the token's place in them) is not counted. Unlike
upstream's, the cache of cosines and sines counts four bytes everywhere: it has to be fp32.
"""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.rope.flags import RopeFlags, rotated, rotated_of_mla

INT32_BYTES, INT64_BYTES = 4, 8


def query_and_key(case: RopeFlags) -> float:
    """Bytes of query and key, read and written anew."""
    heads = case.num_qo_heads + case.num_kv_heads
    return 2 * case.tokens * heads * case.head_dim * case.input_dtype.bytes


def by_offsets(case: RopeFlags) -> Work:
    """Reads and writes query and key."""
    return Work(0, query_and_key(case))


def by_positions(case: RopeFlags) -> Work:
    """The same, and the position of each token."""
    return Work(0, query_and_key(case) + INT32_BYTES * case.tokens)


def by_cache(case: RopeFlags) -> Work:
    """Query and key, the whole cache once, and positions of 64 bits."""
    return Work(0, query_and_key(case) + _cache(case, rotated(case)) + INT64_BYTES * case.tokens)


def quantised(case: RopeFlags) -> Work:
    """Reads both parts of query and key, the cache and positions; writes FP8."""
    heads = case.num_qo_heads + case.num_kv_heads
    return _quantised(case, case.tokens * heads, rotated(case))


def quantised_mla(case: RopeFlags) -> Work:
    """The same with one head of keys; the rotated part is what ``no_rope_dim`` leaves."""
    return _quantised(case, case.tokens * (case.num_qo_heads + 1), rotated_of_mla(case))


def appended(case: RopeFlags) -> Work:
    """Reads query, key, value, the cache of cosines and sines, and positions; writes query, key and value in FP8."""
    vectors = case.tokens * (case.num_qo_heads + 2 * case.num_kv_heads)
    moved = vectors * case.head_dim * (case.input_dtype.bytes + case.quant_dtype.bytes)
    return Work(0, moved + _cache(case, rotated(case)) + INT32_BYTES * case.tokens)


def _quantised(case: RopeFlags, vectors: int, rope_dim: int) -> Work:
    element = case.input_dtype.bytes + case.quant_dtype.bytes
    moved = vectors * (rope_dim + case.no_rope_dim) * element
    return Work(0, moved + _cache(case, rope_dim) + INT32_BYTES * case.tokens)


def _cache(case: RopeFlags, rope_dim: int) -> float:
    return case.seq_len * rope_dim * DType.FLOAT32.bytes
