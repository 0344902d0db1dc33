"""How long each query and each key-value sequence is."""

from __future__ import annotations

from dataclasses import dataclass

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.run.factory import TensorFactory

LONGEST = 2**31 - 1
"""Lengths are numbers of 32 bits. No memory holds a longer sequence: a token takes hundreds of bytes."""
TOKEN_BYTES = 256


@dataclass(frozen=True)
class Sequences:
    """Tokens of each sequence, (batch,) int32 on the CPU."""

    q_lens: torch.Tensor
    kv_lens: torch.Tensor

    @property
    def q_tokens(self) -> int:
        return int(self.q_lens.sum())

    @property
    def kv_tokens(self) -> int:
        return int(self.kv_lens.sum())

    @property
    def average_q(self) -> int:
        """Rounded down."""
        return self.q_tokens // len(self.q_lens)

    @property
    def average_kv(self) -> int:
        """Rounded down."""
        return self.kv_tokens // len(self.kv_lens)


def decoding(case: AttentionFlags, make: TensorFactory) -> Sequences:
    """Every query is s_qo tokens long; a key-value sequence holds at least these."""
    _reserve(case, make)
    q_lens = _full(case, case.s_qo)
    if not case.random_actual_seq_len:
        return Sequences(q_lens, _full(case, case.s_kv))
    (kv_lens,) = make.lengths(case.batch_size, case.s_kv)
    return Sequences(q_lens, kv_lens.clamp(min=case.s_qo))


def prefilling(case: AttentionFlags, make: TensorFactory) -> Sequences:
    """Random query lengths; key-value lengths are the same where their maximum is, else drawn after them.

    With a causal mask no query is longer than its keys.
    """
    _reserve(case, make)
    if not case.random_actual_seq_len:
        return Sequences(_full(case, case.s_qo), _full(case, case.s_kv))
    q_lens, kv_lens = make.lengths(case.batch_size, case.s_qo, case.s_kv)
    if case.s_qo == case.s_kv:
        kv_lens = q_lens
    elif case.s_qo < case.s_kv:
        kv_lens = torch.maximum(q_lens, kv_lens)
    return Sequences(q_lens, kv_lens)


def offsets(lengths: torch.Tensor) -> torch.Tensor:
    """(batch + 1,) int32: where each sequence starts when they lie one behind the other, and the end."""
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    starts[1:] = lengths.cumsum(0)
    return starts


def _full(case: AttentionFlags, length: int) -> torch.Tensor:
    return torch.full((case.batch_size,), length, dtype=torch.int32)


def _reserve(case: AttentionFlags, make: TensorFactory) -> None:
    """Counts the bytes of the lengths, which exist before anything else; absurd ones end here."""
    make.reserve("sequence_lengths", (2, case.batch_size), DType.FLOAT32)
    longest = max(case.s_qo, case.s_kv)
    if longest > LONGEST:
        make.reserve("tokens", (case.batch_size, longest, TOKEN_BYTES), DType.FP8_E4M3)
