"""The mathematics of the RoPE family in fp64, a few tokens at a time: a pair is a complex number, a rotation its
product with another one. What 16 bits are compared with is kept in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from flashinfer_perf.checks.rotated import RotatedHeads
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats.fp8 import encode
from flashinfer_perf.lazy import torch

ELEMENTS_AT_A_TIME = 1 << 22
"""In fp64 with intermediate results: 200 MiB."""


def positions_of(indptr: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(tokens,) int64: each sequence counts from its own offset."""
    starts, first = indptr.tolist(), offsets.tolist()
    lengths = [end - start for start, end in pairwise(starts)]
    counted = [torch.arange(at, at + length) for at, length in zip(first, lengths, strict=True)]
    return torch.cat(counted).to(indptr.device)


def turns(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """exp(i position frequency), (tokens, pairs) complex128."""
    angles = positions.double()[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def cached_turns(cos_sin_cache: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The same from a cache (longest, rotary_dim): cosines in its first half, sines in its second."""
    return torch.complex(*cos_sin_cache.double().chunk(2, dim=-1))[positions.long()]


def rotated(x: torch.Tensor, turn: torch.Tensor, heads: RotatedHeads) -> torch.Tensor:
    """x (tokens, heads, head_dim) with the pairs of each head turned, fp64."""
    pairs = torch.view_as_complex(heads.pairs(x.double()).contiguous())
    turned = heads.members(torch.view_as_real(pairs * turn[:, None]))
    return torch.cat([turned, x[..., heads.rotary_dim :].double()], dim=-1)


def by_tokens(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """A function of tokens, applied to slices of tensors (tokens, …)."""
    count = max(ELEMENTS_AT_A_TIME // tensors[0][0].numel(), 1)
    slices = zip(*(tensor.split(count) for tensor in tensors), strict=True)
    return torch.cat([function(*parts) for parts in slices])


def rotated_fp32(x: torch.Tensor, turn: torch.Tensor, heads: RotatedHeads) -> torch.Tensor:
    """x (tokens, heads, head_dim), or (tokens, heads * head_dim), rotated, in its shape."""

    def rotate(part: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        return rotated(part, turn, heads).float()

    return by_tokens(rotate, x.reshape(len(x), -1, heads.head_dim), turn).reshape(x.shape)


def by_offsets(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    *,
    frequencies: torch.Tensor,
    heads: RotatedHeads,
) -> Mapping[str, torch.Tensor]:
    """q_rope and k_rope (tokens, heads, head_dim), fp32.

    Args:
        q, k: (tokens, heads, head_dim), 16 bits.
        indptr: (batch + 1,) int32, where each sequence begins.
        offsets: (batch,) int32, position of each sequence's first token.
        frequencies: (pairs,) fp64, radians per position.
    """
    pos_ids = positions_of(indptr, offsets)
    return by_positions(q, k, pos_ids, frequencies=frequencies, heads=heads)


def by_positions(
    q: torch.Tensor, k: torch.Tensor, pos_ids: torch.Tensor, *, frequencies: torch.Tensor, heads: RotatedHeads
) -> Mapping[str, torch.Tensor]:
    """The same with the position of each token, (tokens,)."""
    turn = turns(pos_ids, frequencies)
    return {"q_rope": rotated_fp32(q, turn, heads), "k_rope": rotated_fp32(k, turn, heads)}


def by_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    *,
    heads: RotatedHeads,
) -> Mapping[str, torch.Tensor]:
    """query_out and key_out (tokens, heads * head_dim), fp32, rotated by what the cache holds."""
    turn = cached_turns(cos_sin_cache, positions)
    return {"query_out": rotated_fp32(query, turn, heads), "key_out": rotated_fp32(key, turn, heads)}


def quantised(
    *,
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    interleave: bool,
    scale_q: float,
    scale_kv: float,
    dtype: DType,
    q_nope: torch.Tensor | None = None,
    k_nope: torch.Tensor | None = None,
) -> Mapping[str, torch.Tensor]:
    """Each input under its name and ``_out``, times its scale, in FP8: rotated (``rope``) or as it is (``nope``).

    Args:
        q_rope, q_nope: (tokens, heads, dim), 16 bits.
        k_rope, k_nope: the same, or (tokens, dim) for the one head of MLA.
        cos_sin_cache: (longest, rope dim) fp32.
        pos_ids: (tokens,).
    """
    turn = cached_turns(cos_sin_cache, pos_ids)
    scales = {"q": scale_q, "k": scale_kv}
    parts = {"q_rope": q_rope, "k_rope": k_rope, "q_nope": q_nope, "k_nope": k_nope}
    outputs = {}
    for name, x in parts.items():
        if x is not None:
            rotation = turn if name.endswith("rope") else None
            outputs[f"{name}_out"] = fp8(x, scales[name[0]], dtype, rotation, interleave)
    return outputs


def fp8(
    x: torch.Tensor, scale: float, dtype: DType, turn: torch.Tensor | None = None, interleave: bool = False
) -> torch.Tensor:
    """x (tokens, …, dim) times the scale in FP8, rounded once; rotated as a whole where there is a turn."""
    dim = x.shape[-1]
    heads = RotatedHeads(dim, dim, interleave)

    def rotate(part: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        return encode((rotated(part, turn, heads) * scale).float(), dtype)

    def leave(part: torch.Tensor) -> torch.Tensor:
        return encode((part.double() * scale).float(), dtype)

    rows = x.reshape(len(x), -1, dim)
    return (by_tokens(leave, rows) if turn is None else by_tokens(rotate, rows, turn)).reshape(x.shape)


def appended(
    *,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    v: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    slot_dim: int,
    **quantisers: object,
) -> Mapping[str, torch.Tensor]:
    """q_rope_out, q_nope_out where there is one, and the caches as they are afterwards, ``paged_kv_cache.0`` and
    ``.1``: rotated part and rest of a key side by side in its slot, a value in the same slot; other slots as before.

    Args:
        k_cache, v_cache: FP8, slots counted in dimension ``slot_dim``.
        v: (tokens, heads, dim), 16 bits.
        kv_indices: page numbers, sequence by sequence; the first of each is at ``kv_indptr``.
        batch_indices, positions: (tokens,), each token's sequence and place in it.
        quantisers: arguments of ``quantised``.
    """
    made: dict[str, torch.Tensor] = dict(quantised(**quantisers))  # type: ignore[arg-type]
    keys = [made.pop(name).view(torch.uint8) for name in ("k_rope_out", "k_nope_out") if name in made]
    values = fp8(v, quantisers["scale_kv"], quantisers["dtype"])  # type: ignore[arg-type]
    rows = {0: torch.cat(keys, dim=-1), 1: values.view(torch.uint8)}
    for number, cache in enumerate((k_cache, v_cache)):
        after = cache.clone()
        slots = after.view(torch.uint8).movedim(slot_dim, 1)
        for sequence, first in enumerate(kv_indptr.tolist()[:-1]):
            own = batch_indices == sequence
            pages, within = positions[own].long().div(slots.shape[1], rounding_mode="floor"), positions[own].long()
            slots[kv_indices[first + pages].long(), within % slots.shape[1]] = rows[number][own]
        made[f"paged_kv_cache.{number}"] = after
    return made
