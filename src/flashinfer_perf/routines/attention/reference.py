"""The mathematics of attention, in fp32 over the true lengths, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.sequences import Sequences, offsets

SCORES = 1 << 26
"""At most so many scores are held at a time: 256 MiB."""

KeysAndValues = Callable[[int], "tuple[torch.Tensor, torch.Tensor]"]
"""The keys (kv, kv heads, dim) and values (kv, kv heads, value dim) of a sequence."""


def attention(
    queries: torch.Tensor,
    fetch: KeysAndValues,
    sequences: Sequences,
    *,
    causal: bool,
    sm_scale: float,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(q k^T * sm_scale) v for queries that lie sequence by sequence.

    A causal mask is aligned to the end: the last query of a sequence sees all of its keys.

    Args:
        queries: (tokens, heads, dim).
        rows: (n,) int64, sorted: the tokens to compute; None for all.

    Returns:
        (n, heads, value dim) in fp32.
    """
    rows = torch.arange(len(queries)) if rows is None else rows
    starts = offsets(sequences.q_lens).long()
    bounds = torch.searchsorted(rows, starts).tolist()
    parts = []
    for sequence, kv_len in enumerate(sequences.kv_lens.tolist()):
        chosen = rows[bounds[sequence] : bounds[sequence + 1]]
        if len(chosen):
            position = chosen - starts[sequence]
            last = (
                kv_len - int(sequences.q_lens[sequence]) + position if causal else torch.full_like(chosen, kv_len - 1)
            )
            device = queries.device
            parts.append(_attend(queries[chosen.to(device)], *fetch(sequence), last.to(device), sm_scale))
    return torch.cat(parts)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, last: torch.Tensor, sm_scale: float
) -> torch.Tensor:
    """Of one sequence, so many queries at a time that their scores fit; ``last`` is the last key that each sees."""
    keys, values = keys.float().permute(1, 2, 0), values.float().transpose(0, 1)
    at_a_time = max(SCORES // (queries.shape[1] * keys.shape[2]), 1)
    chunks = zip(queries.split(at_a_time), last.split(at_a_time), strict=True)
    return torch.cat([_attend_at_once(chunk, keys, values, seen, sm_scale) for chunk, seen in chunks])


def _attend_at_once(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, last: torch.Tensor, sm_scale: float
) -> torch.Tensor:
    """Keys are (kv heads, dim, kv), values (kv heads, kv, value dim): all query heads of a kv head in one product."""
    count, heads, _ = queries.shape
    grouped = queries.float().unflatten(1, (len(keys), -1)).transpose(0, 1).flatten(1, 2)
    scores = (grouped @ keys).mul_(sm_scale).unflatten(1, (count, -1))
    behind = torch.arange(keys.shape[2], device=last.device) > last[:, None]
    scores.masked_fill_(behind[None, :, None, :], float("-inf"))
    out = torch.softmax(scores, dim=-1).flatten(1, 2) @ values
    return out.unflatten(1, (count, -1)).transpose(0, 1).reshape(count, heads, -1)
