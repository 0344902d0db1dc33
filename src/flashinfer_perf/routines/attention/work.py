"""FLOPs and bytes of attention by the documented formulas, over the actual lengths; FLOPs in whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.sequences import Sequences


def attention_work(case: AttentionFlags, sequences: Sequences, causal: bool) -> Work:
    """2 (D + Dv) FLOPs for each query head and pair of a query and a key; every operand moved once.

    With a causal mask the documented count of pairs is q (2 kv - q) / 2 for a sequence, which misses half of the
    diagonal; the exact one is in ``exact_flops``.
    """
    pairs = sum(q * (2 * kv - q) if causal else 2 * q * kv for q, kv in _lengths(sequences))
    flops = pairs * case.num_qo_heads * _dims(case)
    q_tokens, kv_tokens = sequences.q_tokens, sequences.kv_tokens
    query = q_tokens * case.num_qo_heads * case.head_dim_qk * case.q_dtype.bytes  # type: ignore[operator]
    cache = kv_tokens * case.num_kv_heads * _dims(case) * case.kv_dtype.bytes
    output = q_tokens * case.num_qo_heads * case.head_dim_vo * case.out_dtype.bytes  # type: ignore[operator]
    return Work(flops=flops, bytes=query + cache + output)


def exact_flops(case: AttentionFlags, sequences: Sequences, causal: bool) -> Mapping[str, Any]:
    """The fact of that name: with a right-aligned mask, q (2 kv - q + 1) / 2 pairs of a sequence; else none, as the
    documented count is exact.
    """
    if not causal:
        return {}
    pairs = sum(q * (2 * kv - q + 1) for q, kv in _lengths(sequences))
    return {"exact_flops": pairs * case.num_qo_heads * _dims(case)}


def _lengths(sequences: Sequences) -> list[tuple[int, int]]:
    return list(zip(sequences.q_lens.tolist(), sequences.kv_lens.tolist(), strict=True))


def _dims(case: AttentionFlags) -> int:
    return case.head_dim_qk + case.head_dim_vo  # type: ignore[operator]
