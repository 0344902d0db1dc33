"""Inputs of the RoPE family, their checks, and the lines that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.rotated import RotatedHeads
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.rope.flags import RopeFlags, rotated
from flashinfer_perf.routines.rope.frequencies import Frequencies
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Check, Shown

CACHED_THETA = 10000.0
"""Base of the frequencies in a cache; routines that are given one read no ``--rope_theta``."""


def query_and_key(case: RopeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """q and k (tokens, heads, head_dim), standard normal."""
    return {
        "q": make.normal("q", (case.tokens, case.num_qo_heads, case.head_dim), case.input_dtype),
        "k": make.normal("k", (case.tokens, case.num_kv_heads, case.head_dim), case.input_dtype),
    }


def sequences(case: RopeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """indptr (batch + 1,) and offsets (batch,), int32: sequences of one length that begin at position 0."""
    indptr = torch.arange(0, case.tokens + 1, case.seq_len, dtype=torch.int32, device=make.device)
    return {"indptr": indptr, "offsets": torch.zeros(case.batch_size, dtype=torch.int32, device=make.device)}


def positions(case: RopeFlags, make: TensorFactory) -> torch.Tensor:
    """(tokens,) int32: every sequence counts from 0."""
    make.reserve("positions", (case.tokens,), DType.FLOAT32)
    counted = torch.arange(case.seq_len, dtype=torch.int32, device=make.device)
    return counted.repeat(case.batch_size)


def position_ids(case: RopeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """pos_ids: those positions."""
    return {"pos_ids": positions(case, make)}


def cos_sin_cache(case: RopeFlags, make: TensorFactory, rotary_dim: int) -> torch.Tensor:
    """(seq_len, rotary_dim) fp32: cosines of a position's angles, then sines, computed in fp64.

    A row more is allocated behind it: with ``--interleave`` FlashInfer's kernels read up to 32 bytes past a row.
    """
    make.reserve("cos_sin_cache", (case.seq_len + 1, rotary_dim), DType.FLOAT32)
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64, device=make.device)
    places = torch.arange(case.seq_len + 1, dtype=torch.float64, device=make.device)
    angles = places[:, None] * CACHED_THETA ** (-2 * pairs / rotary_dim)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()[: case.seq_len]


def heads_of(case: RopeFlags) -> RotatedHeads:
    """Where the pairs of a head are."""
    return RotatedHeads(case.head_dim, rotated(case), case.interleave)


def checks(
    case: RopeFlags, make: TensorFactory, names: tuple[str, str], frequencies: Frequencies | None = None
) -> dict[str, Check]:
    """Of both outputs; without frequencies cosine and sine are given."""
    error = None
    if frequencies is not None:
        error = tolerance.angle_error(frequencies.plain, frequencies.scaled, frequencies.sensitivity)
    within = tolerance.for_rotation(case.input_dtype, heads_of(case), positions(case, make), error)
    return dict.fromkeys(names, within)


def shapes(made: Mapping[str, torch.Tensor | None]) -> tuple[Shown, ...]:
    """``q.shape = …`` for each; None for one that there is not."""
    return tuple(Shown(f"{name}.shape", None if tensor is None else tensor.shape) for name, tensor in made.items())


def values(**shown: Any) -> tuple[Shown, ...]:
    """``rotary_dim = 128`` for each."""
    return tuple(Shown(label, value) for label, value in shown.items())
