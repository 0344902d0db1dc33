"""FlashInfer's latent attention without a GPU: all of the library's own Python runs, but for its compiled modules.

    made = compiled_latent.install(monkeypatch, capability=(9, 0))

In place of the kernels computes ``compiled.attend``; what the kernels take on trust is asserted.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from tests.routines.attention.compiled import attend, gathered, torch_without_gpu

BACKENDS = "flashinfer.mla._batch_mla._backends"


def install(monkeypatch: Any, capability: tuple[int, int] = (9, 0)) -> list[str]:
    """The library believes to be on such a GPU. Gives the names of the kernels that are called."""
    called: list[str] = []
    common, wrapper, core = (
        importlib.import_module(name)
        for name in (f"{BACKENDS}._fa_common", "flashinfer.mla._batch_mla._wrapper", "flashinfer.mla._core")
    )
    for module in (common, core):
        monkeypatch.setattr(module, "get_compute_capability", lambda device: capability)
        monkeypatch.setattr(module, "get_device_sm_count", lambda device: 132)
    monkeypatch.setattr(wrapper, "_get_compute_capability", lambda device: capability)
    monkeypatch.setattr(f"{BACKENDS}.cutlass_backend._get_compute_capability", lambda device: capability)
    monkeypatch.setattr(common, "is_sm90a_supported", lambda device: capability[0] == 9)
    monkeypatch.setattr(core, "is_sm12x_supported", lambda device: capability[0] == 12)
    monkeypatch.setattr(common, "_get_fa_shared_memory_limits", lambda device: (233472, 232448))
    monkeypatch.setattr(common, "torch", torch_without_gpu())
    for backend in ("fa2", "fa3"):
        module = FlashAttention(called, backend)
        monkeypatch.setattr(f"{BACKENDS}.{backend}_backend.get_batch_mla_module", lambda *which, made=module: made)
    monkeypatch.setattr(f"{BACKENDS}.cutlass_backend.get_mla_module", lambda: Cutlass(called))
    return called


class FlashAttention:
    """The compiled module behind fa2 and fa3."""

    def __init__(self, called: list[str], backend: str) -> None:
        self.called, self.backend = called, backend

    def plan(self, float_ws, int_ws, pinned_ws, qo_indptr, kv_indptr, kv_len, num_heads, ckv, causal):
        assert not causal
        assert qo_indptr.tolist() == list(range(len(kv_len) + 1))
        return SimpleNamespace(kv_indptr=kv_indptr.tolist(), lengths=kv_len.tolist(), ckv=ckv)

    def run(
        self, float_ws, int_ws, plan, q_nope, q_pe, ckv_cache, kpe_cache, kv_indices, out, lse, mask_mode, num_heads,
        page_size, sm_scale, base_e, ckv_scale, kpe_scale, ckv_scale_arr,
    ):  # fmt: skip
        assert (ckv_cache.shape[1:], num_heads, mask_mode) == ((page_size, plan.ckv), q_nope.shape[1], 0)
        assert ckv_scale_arr is None
        scales = (ckv_scale, kpe_scale) if ckv_cache.dtype.itemsize == 1 else (1.0, 1.0)
        self.called.append(self.backend)
        pairs = []
        for (first, last), length in zip(pairwise(plan.kv_indptr), plan.lengths, strict=True):
            ckv, kpe = (
                scale * gathered(cache[:, None], kv_indices[first:last], length)
                for cache, scale in zip((ckv_cache, kpe_cache), scales, strict=True)
            )
            pairs.append((torch.cat((ckv, kpe), dim=-1), ckv))
        attend(torch.cat((q_nope, q_pe), dim=-1), pairs, list(range(len(pairs) + 1)), False, sm_scale, 1.0, out)


def with_table(q, kv_cache, table, lengths, ckv, sm_scale, v_scale, out):
    """Of one query each, (batch, heads, dim), by a page table."""
    page = kv_cache.shape[1]
    keys = [
        gathered(kv_cache[:, None], own[: -(-length // page)], length)
        for own, length in zip(table, lengths.tolist(), strict=True)
    ]
    pairs = [(key, key[..., :ckv]) for key in keys]
    attend(q, pairs, list(range(len(pairs) + 1)), False, sm_scale, v_scale, out)


class Cutlass:
    """The compiled module behind cutlass. The softmax scale is compiled in."""

    def __init__(self, called: list[str]) -> None:
        self.called = called

    def cutlass_mla_paged_attention(self, workspace, out, lse, q, kv_cache, kv_len, table, output_scale):
        assert (table.shape[1] * kv_cache.shape[1] % 128, output_scale) == (0, 1.0)
        self.called.append("cutlass")
        with_table(q, kv_cache, table, kv_len, out.shape[-1], 192**-0.5, 1.0, out)
