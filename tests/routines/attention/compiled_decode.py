"""FlashInfer's decoding without a GPU: all of the library's own Python runs, but for its compiled modules.

    made = compiled_decode.install(monkeypatch, capability=(9, 0))

In place of the kernels computes ``compiled.attend``; what the kernels take on trust is asserted: formats and group
sizes that they were compiled for, equal strides, lengths, masks.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from tests.routines.attention.compiled import CAUSAL, HND, attend, gathered, torch_without_gpu

DECODE = "flashinfer.decode"
GROUPS = (1, 2, 3, 4, 6, 8, 16)
"""DISPATCH_GQA_GROUP_SIZE of the library's headers."""


@dataclass
class Made:
    """``modules`` are the kernels that were asked for, in order, ``pdl`` what each call said, ``layouts`` the strides
    of the keys that each call got.
    """

    modules: list[str] = field(default_factory=list)
    pdl: list[bool] = field(default_factory=list)
    layouts: list[tuple[int, ...]] = field(default_factory=list)

    def called(self, keys: torch.Tensor, values: torch.Tensor, enable_pdl: bool) -> None:
        assert type(enable_pdl) is bool
        assert keys.stride() == values.stride()
        self.pdl.append(enable_pdl)
        self.layouts.append(keys.stride())


def install(monkeypatch: Any, capability: tuple[int, int] = (9, 0)) -> Made:
    """The library believes to be on such a GPU."""
    made = Made()
    xqa = importlib.import_module("flashinfer.xqa")  # as an attribute of the package it is a function
    for module in (importlib.import_module(DECODE), xqa):
        monkeypatch.setattr(module, "get_compute_capability", lambda device: capability)
        monkeypatch.setattr(module, "get_device_sm_count", lambda device: 132)
    monkeypatch.setattr("flashinfer.utils.is_sm90a_supported", lambda device: capability[0] == 9)
    monkeypatch.setattr(f"{DECODE}.torch", torch_without_gpu())
    monkeypatch.setattr(f"{DECODE}.get_batch_decode_module", lambda *formats: CudaCores(made, formats))
    monkeypatch.setattr(f"{DECODE}.get_batch_prefill_module", lambda *formats: TensorCores(made, *formats))
    monkeypatch.setattr(xqa, "_get_xqa_module_cached", lambda *formats: Xqa(made, formats))
    return made


class CudaCores:
    """The compiled module behind fa2 without tensor cores."""

    def __init__(self, made: Made, formats: tuple[Any, ...]) -> None:
        self.made, self.dtypes, self.dims = made, formats[:3], formats[4:6]
        assert formats[3] is torch.int32
        assert formats[6:] == (0, False, False)  # position encoding, window, soft cap
        made.modules.append("cuda cores")

    def plan(
        self, float_ws, int_ws, pinned_ws, indptr, batch, heads, kv_heads, page_size, cuda_graph, window_left, soft_cap,
        dim_qk, dim_vo, empty_q, empty_kv,
    ):  # fmt: skip
        assert heads % kv_heads == 0, "nothing checks it"
        if heads // kv_heads not in GROUPS:
            raise RuntimeError(f"Unsupported group_size: {heads // kv_heads}")
        assert (empty_q.dtype, empty_kv.dtype, (dim_qk, dim_vo)) == (*self.dtypes[:2], self.dims)
        assert (cuda_graph, window_left, soft_cap) == (False, -1, 0.0)
        return SimpleNamespace(kv=indptr.tolist(), page_size=page_size, heads=heads)

    def run(
        self, float_ws, int_ws, plan, q, k_cache, v_cache, indptr, indices, last_page_len, out, lse, layout,
        window_left, enable_pdl, alibi, soft_cap, sm_scale, rope_scale, rope_theta,
    ):  # fmt: skip
        assert (q.dtype, k_cache.dtype, out.dtype) == self.dtypes
        assert (indptr.tolist(), layout, q.shape[1]) == (plan.kv, HND, plan.heads)
        self.made.called(k_cache, v_cache, enable_pdl)
        pairs = paged(k_cache, v_cache, indptr, indices, last_page_len)
        attend(q, pairs, list(range(len(q) + 1)), False, sm_scale, 1.0, out)


class TensorCores:
    """The compiled module behind fa2 with tensor cores, and fa3."""

    def __init__(self, made: Made, backend: str, *formats: Any) -> None:
        self.made, self.backend, self.dtypes, self.dims = made, backend, formats[:3], formats[4:6]
        assert formats[3] is torch.int32
        assert formats[6:] == (0, False, False, False)  # position encoding, window, soft cap, fp16 products
        q, kv, _ = self.dtypes
        if backend == "fa3":
            assert q.itemsize == kv.itemsize, "does not compile"
        made.modules.append(backend)

    def plan(
        self, float_ws, int_ws, pinned_ws, qo_indptr, kv_indptr, kv_len, rows, batch, heads, kv_heads, page_size,
        cuda_graph, dim_qk, dim_vo, causal, window_left, *fa2,
    ):  # fmt: skip
        queries = rows // batch
        assert fa2 == ((-1, False, 0, queries if queries > 1 else 0) if self.backend == "fa2" else ())
        assert qo_indptr.tolist() == [queries * sequence for sequence in range(batch + 1)]
        assert ((dim_qk, dim_vo), heads % kv_heads, cuda_graph, window_left) == (self.dims, 0, False, -1)
        assert causal is (queries > 1)
        return SimpleNamespace(qo=qo_indptr.tolist(), kv=kv_indptr.tolist(), kv_len=kv_len.tolist(), causal=causal)

    def paged_run(
        self, float_ws, int_ws, plan, q, k_cache, v_cache, qo_indptr, kv_indptr, kv_indices, last_page_len, out, lse,
        mask_mode, layout, window_left, enable_pdl, custom_mask, mask_indptr, alibi, prefix_len, token_pos, max_len,
        soft_cap, sm_scale, scale_q, scale_k, scale_v, *rest,
    ):  # fmt: skip
        assert (q.dtype, k_cache.dtype, out.dtype) == self.dtypes
        assert (qo_indptr.tolist(), kv_indptr.tolist(), layout) == (plan.qo, plan.kv, HND)
        assert (mask_mode == CAUSAL) is plan.causal
        assert [scale_q, scale_k, scale_v] == [None] * 3, "would be applied a second time"
        self.made.called(k_cache, v_cache, enable_pdl)
        pairs = paged(k_cache, v_cache, kv_indptr, kv_indices, last_page_len)
        assert [len(keys) for keys, _ in pairs] == plan.kv_len
        attend(q, pairs, plan.qo, plan.causal, sm_scale, 1.0, out)


class Xqa:
    """The compiled module behind trtllm-native on Hopper; formats are those of ``gen_xqa_module``."""

    def __init__(self, made: Made, formats: tuple[Any, ...]) -> None:
        self.made = made
        self.q, self.kv, self.page_size, self.dim, self.group, window, self.out, self.queries, ragged = formats
        assert not window
        assert not ragged
        made.modules.append("xqa")

    def xqa(
        self, fp8_of_hopper, sm_count, kv_heads, window, q_scale, out, rcp_out_scale, q, sinks, k_cache, v_cache, k_sf,
        v_sf, block_tables, max_seq_len, seq_lens, batch, kv_scale, semaphores, workspace, enable_pdl, queries, cum_q,
        mask,
    ):  # fmt: skip
        assert (q.dtype, k_cache.dtype, out.dtype) == (self.q, self.kv, self.out)
        assert (q.shape[-2], q.shape[-1], queries) == (self.group * kv_heads, self.dim, self.queries)
        assert q.is_contiguous()
        assert out.is_contiguous()
        assert not semaphores.any(), "would never be released"
        assert type(q_scale) is type(kv_scale) is float, "would be taken for a tensor"
        assert self.kv is torch.float8_e4m3fn or kv_scale == 1, "is ignored"
        assert rcp_out_scale == 1
        assert all(stride % self.dim == 0 for stride in k_cache.stride()[:3]), "are counted in rows"
        keys, values = (cache.transpose(1, 2) for cache in (k_cache, v_cache))  # it takes tokens before heads
        self.made.called(keys, values, enable_pdl)
        seen = visible(mask, batch, queries)
        lengths = seq_lens[:, 0].tolist()
        pairs = [
            tuple(gathered(cache, table[: -(-length // self.page_size)], length) for cache in (keys, values))
            for table, length in zip(block_tables, lengths, strict=True)
        ]
        starts = [queries * sequence for sequence in range(batch + 1)]
        rows = (tensor.view(batch * queries, *tensor.shape[-2:]) for tensor in (q, out))
        attend_seen(*rows, pairs, starts, seen, q_scale * kv_scale / self.dim**0.5, kv_scale)


def visible(mask, batch, queries):
    """(batch, queries, queries) of the bits, each row of which is read as words of 32, the lowest bit first."""
    if queries == 1:
        assert mask is None
        return torch.ones(batch, 1, 1, dtype=torch.bool)
    assert (mask.dtype, mask.is_contiguous()) == (torch.uint16, True)
    assert mask.shape == (batch, queries, 2 * -(-queries // 32))
    low, high = mask.to(torch.int64).unflatten(-1, (-1, 2)).unbind(-1)
    words = low + (high << 16)
    return torch.stack([(words[..., bit // 32] >> bit % 32 & 1).bool() for bit in range(queries)], dim=-1)


def attend_seen(q, out, pairs, starts, seen, sm_scale, v_scale):
    """Each query with the keys before the draft and those of the draft that it sees: one call of them each."""
    for sequence, (keys, values) in enumerate(pairs):
        before = len(keys) - seen.shape[-1]
        for row, visible_queries in enumerate(seen[sequence]):
            chosen = torch.cat((torch.ones(before, dtype=torch.bool), visible_queries))
            own = slice(starts[sequence] + row, starts[sequence] + row + 1)
            attend(q[own], [(keys[chosen], values[chosen])], [0, 1], False, sm_scale, v_scale, out[own])


def paged(k_cache, v_cache, indptr, indices, last_page_len):
    """Keys and values of each sequence."""
    assert indptr.dtype is indices.dtype is last_page_len.dtype is torch.int32
    page_size, pairs = k_cache.shape[2], []
    for (first, last), filled in zip(pairwise(indptr.tolist()), last_page_len.tolist(), strict=True):
        length = (last - first - 1) * page_size + filled
        pairs.append(tuple(gathered(cache, indices[first:last], length) for cache in (k_cache, v_cache)))
    return pairs
