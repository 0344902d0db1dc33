"""The mathematics of attention, in fp32 over the true lengths, sequence by sequence."""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.lazy import torch


def mla_decode(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    ckv_cache: torch.Tensor,
    kpe_cache: torch.Tensor,
    block_tables: torch.Tensor,
    kv_len: torch.Tensor,
    *,
    sm_scale: float,
    **unused: torch.Tensor,
) -> Mapping[str, torch.Tensor]:
    """Multi-head latent attention of one query per sequence.

    out = softmax((q_nope ckv^T + q_pe kpe^T) * sm_scale) ckv, where the pages of a sequence are gathered first.

    Args:
        q_nope: (batch, heads, ckv).
        q_pe: (batch, heads, kpe).
        ckv_cache: (pages, page size, ckv).
        kpe_cache: (pages, page size, kpe).
        block_tables: (batch, pages per sequence).
        kv_len: (batch,).

    Returns:
        out: (batch, heads, ckv) in fp32.
    """
    out = torch.empty(q_nope.shape, dtype=torch.float32, device=q_nope.device)
    for sequence, length in enumerate(kv_len.tolist()):
        ckv = gather(ckv_cache, block_tables[sequence], length).float()
        kpe = gather(kpe_cache, block_tables[sequence], length).float()
        scores = q_nope[sequence].float() @ ckv.T + q_pe[sequence].float() @ kpe.T
        out[sequence] = torch.softmax(scores * sm_scale, dim=-1) @ ckv
    return {"out": out}


def gather(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` rows of a sequence, from (pages, page size, …) by its row of the block table."""
    pages = -(-length // cache.shape[1])
    return cache[table[:pages].long()].flatten(0, 1)[:length]
