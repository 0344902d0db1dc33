"""FlashInfer's prefill without a GPU: all of the library's own Python runs, but for its compiled modules.

    made = compiled_prefill.install(monkeypatch, capability=(9, 0))

In place of the kernels computes ``compiled.attend``; what they take on trust, such as formats that the module was
compiled for, strides and lengths, is asserted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from tests.routines.attention.compiled import CAUSAL, HND, NHD, attend, gathered, torch_without_gpu

PREFILL = "flashinfer.prefill"


def install(monkeypatch: Any, capability: tuple[int, int] = (9, 0)) -> Made:
    """The library believes to be on such a GPU."""
    import flashinfer.prefill

    made = Made()
    for name in ("get_batch_prefill_module", "get_trtllm_gen_prefill_module"):  # their caches would keep ours
        monkeypatch.setattr(f"{PREFILL}.{name}", getattr(flashinfer.prefill, name).__wrapped__)
    monkeypatch.setattr(f"{PREFILL}._gen_batch_prefill_primary_module", made.generator(one_stride=True))
    monkeypatch.setattr(f"{PREFILL}.gen_batch_prefill_module", made.generator(one_stride=False))
    monkeypatch.setattr(f"{PREFILL}._gen_batch_prefill_independent_paged_module", made.generator(one_stride=False))
    monkeypatch.setattr(f"{PREFILL}._LazyBatchPrefillIndependentModule", LoadedBeforehand)
    monkeypatch.setattr(f"{PREFILL}.gen_trtllm_gen_fmha_module", lambda: Spec(TensorRT(made)))
    monkeypatch.setattr(f"{PREFILL}.get_trtllm_gen_fmha_module", lambda: TensorRT(made))
    monkeypatch.setattr(f"{PREFILL}.get_fmha_module", lambda *arguments: Cutlass(made, arguments))
    monkeypatch.setattr(f"{PREFILL}._get_cache_buf", lambda name, size, device: torch.empty(8, dtype=torch.uint8))
    monkeypatch.setattr(f"{PREFILL}.get_device_sm_count", lambda device: 148)
    monkeypatch.setattr(f"{PREFILL}.cudnn_batch_prefill_with_kv_cache", cudnn)
    monkeypatch.setattr(f"{PREFILL}.torch", torch_without_gpu())
    monkeypatch.setattr("flashinfer.utils.is_sm90a_supported", lambda device: capability[0] == 9)
    monkeypatch.setattr(f"{PREFILL}.is_sm100a_supported", lambda device: capability[0] == 10)
    monkeypatch.setattr(f"{PREFILL}.is_sm110a_supported", lambda device: capability[0] == 11)
    monkeypatch.setattr(f"{PREFILL}._cudnn_supports_direct_seqlens", lambda dtype, mixed=False: False)
    return made


@dataclass
class Made:
    """``modules`` are (backend, was compiled for one stride of keys and values) in order, ``pdl`` what each call said,
    ``plans`` the plans.
    """

    modules: list[tuple[str, bool]] = field(default_factory=list)
    pdl: list[bool] = field(default_factory=list)
    plans: list[SimpleNamespace] = field(default_factory=list)

    def generator(self, one_stride: bool) -> Any:
        def generate(backend: str, *arguments: Any) -> Spec:
            return Spec(FlashAttention(self, backend, one_stride, arguments))

        return generate


@dataclass
class Spec:
    module: Any

    def build_and_load(self) -> Any:
        if isinstance(self.module, FlashAttention):
            self.module.made.modules.append((self.module.backend, self.module.one_stride))
        return self.module

    def get_library_paths(self) -> list[str]:
        return []


class LoadedBeforehand:
    """The library would compile this module in the first call that needs it; ours must have asked for it before."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.module = spec, None

    def prewarm(self) -> None:
        self.module = self.spec.build_and_load()

    def get(self, device: Any) -> Any:
        assert self.module is not None, "compiled in the timed call"
        return self.module


class FlashAttention:
    """The compiled module behind fa2 and fa3. A plan is what its ``plan`` returns."""

    def __init__(self, made: Made, backend: str, one_stride: bool, arguments: tuple[Any, ...]) -> None:
        self.made, self.backend, self.one_stride = made, backend, one_stride
        self.dtypes, (self.index, *self.dims) = arguments[:3], arguments[3:6]
        assert arguments[6:] == (0, False, False, False)  # position encoding, window, soft cap, fp16 products
        assert self.index is torch.int32
        if backend == "fa3":
            assert self.dtypes[0] is self.dtypes[1], "does not compile"
        else:
            assert self.dtypes[0].itemsize == 2, "fp8 tensor core is not supported in fa2 backend"

    def plan(
        self, float_ws, int_ws, pinned_ws, qo_indptr, kv_indptr, kv_len, rows, batch, heads, kv_heads, page_size,
        cuda_graph, dim_qk, dim_vo, causal, window_left, *fa2,
    ):  # fmt: skip
        assert [dim_qk, dim_vo] == self.dims
        assert (cuda_graph, window_left) == (False, -1)
        assert fa2 == ((-1, False, 0, 0) if self.backend == "fa2" else ())
        for tensor in (qo_indptr, kv_indptr, kv_len):
            assert (tensor.device.type, tensor.dtype) == ("cpu", torch.int32)
        assert (rows, batch, heads % kv_heads) == (qo_indptr[-1], len(kv_len), 0)
        plan = SimpleNamespace(
            qo=qo_indptr.tolist(), kv=kv_indptr.tolist(), kv_len=kv_len.tolist(), causal=causal, heads=(heads, kv_heads)
        )
        plan.page_size = page_size
        self.made.plans.append(plan)
        return plan

    def ragged_run(self, float_ws, int_ws, plan, q, k, v, qo_indptr, kv_indptr, out, lse, *rest):
        mask_mode, layout, _, enable_pdl, *tail = rest
        assert (layout, plan.page_size) == (NHD, 1)
        assert (qo_indptr.tolist(), kv_indptr.tolist()) == (plan.qo, plan.kv)
        pairs = [(k[a:b], v[a:b]) for a, b in pairwise(plan.kv)]
        self._attend(plan, q, (k, v), pairs, out, mask_mode, enable_pdl, tail)

    def paged_run(
        self, float_ws, int_ws, plan, q, k_cache, v_cache, qo_indptr, kv_indptr, kv_indices, last_page_len, out, lse,
        mask_mode, layout, window_left, enable_pdl, *tail,
    ):  # fmt: skip
        assert (layout, k_cache.shape[2]) == (HND, plan.page_size)
        assert (qo_indptr.tolist(), kv_indptr.tolist()) == (plan.qo, plan.kv)
        assert kv_indices.dtype is last_page_len.dtype is torch.int32
        pairs = []
        for sequence, length in enumerate(plan.kv_len):
            first, last = plan.kv[sequence : sequence + 2]
            assert (last - first - 1) * plan.page_size + last_page_len[sequence] == length
            pairs.append(tuple(gathered(cache, kv_indices[first:last], length) for cache in (k_cache, v_cache)))
        if self.backend == "fa3":
            assert (k_cache.stride(0), k_cache.stride(2)) == (v_cache.stride(0), v_cache.stride(2))
            assert q.shape[-1] == v_cache.shape[-1]
        assert not self.one_stride or k_cache.stride() == v_cache.stride()
        self._attend(plan, q, (k_cache, v_cache), pairs, out, mask_mode, enable_pdl, tail)

    def _attend(self, plan, q, caches, pairs, out, mask_mode, enable_pdl, tail):
        keys, values = caches
        assert (q.dtype, keys.dtype, out.dtype) == self.dtypes
        assert values.dtype is keys.dtype
        assert [q.shape[-1], values.shape[-1]] == [keys.shape[-1], out.shape[-1]] == self.dims
        assert (q.shape[1], mask_mode) == (plan.heads[0], int(plan.causal))
        assert out.is_contiguous()
        assert type(enable_pdl) is bool
        self.made.pdl.append(enable_pdl)
        sm_scale, v_scale = self._scales(q, tail)
        attend(q, pairs, plan.qo, plan.causal, sm_scale, v_scale, out)

    def _scales(self, q: torch.Tensor, tail: list[Any]) -> tuple[float, float]:
        if self.backend == "fa2":
            *tensors, soft_cap, sm_scale, _, _, _ = tail
            assert (len(tensors), soft_cap) == (8, 0.0)
            return sm_scale, 1.0
        if q.dtype.itemsize == 2:
            _, _, _, of_heads, soft_cap, sm_scale, v_scale, _ = tail
            assert (of_heads, soft_cap) == (None, 0.0)
            return sm_scale, v_scale
        *of_heads, sm_scale, q_scale, k_scale, v_scale = tail
        assert of_heads == [None, None, None]
        return sm_scale * q_scale * k_scale, v_scale


class TensorRT:
    """The compiled module behind trtllm-gen and trtllm-native."""

    def __init__(self, made: Made) -> None:
        self.made = made

    def trtllm_paged_attention_context(
        self, out, out_sf, query, k_cache, v_cache, workspace, counters, block_tables, seq_lens, max_q, max_kv, bmm1,
        bmm2, o_sf_scale, o_sf_vec_size, o_sf_start, batch, window_left, cum_q, cum_kv, sm_count, pdl, *rest,
    ):  # fmt: skip
        assert (o_sf_scale, window_left, rest[-3:]) == (-1, -1, (1.0, 0, 0))
        assert query.is_contiguous()
        assert out.shape == query.shape
        assert k_cache.stride() == v_cache.stride()
        assert block_tables.dtype is cum_kv.dtype is torch.int32
        lengths = seq_lens[:batch].tolist()
        assert max(lengths) <= max_kv <= block_tables.shape[1] * k_cache.shape[2]
        pairs = [
            tuple(gathered(cache, block_tables[sequence], length) for cache in (k_cache, v_cache))
            for sequence, length in enumerate(lengths)
        ]
        self._attend(query, pairs, cum_q, max_q, rest[8], (bmm1, bmm2), out, pdl)

    def trtllm_ragged_attention(
        self, out, query, key, value, workspace, seq_lens, max_q, max_kv, bmm1, bmm2, o_sf_scale, batch, window_left,
        cum_q, cum_kv, sm_count, pdl, causal, *rest,
    ):  # fmt: skip
        assert (o_sf_scale, window_left, len(cum_kv)) == (1.0, -1, batch + 1)
        assert query.is_contiguous()
        assert cum_kv.dtype is torch.int32
        assert cum_kv.diff().tolist() == seq_lens.tolist()
        assert int(seq_lens.max()) <= max_kv
        starts = cum_kv.tolist()
        pairs = [(key[a:b], value[a:b]) for a, b in pairwise(starts)]
        self._attend(query, pairs, cum_q, max_q, causal, (bmm1, bmm2), out, pdl)

    def _attend(self, query, pairs, cum_q, max_q, causal, scales, out, pdl):
        assert int(cum_q.diff().max()) <= max_q
        assert cum_q.dtype is torch.int32
        assert type(causal) is type(pdl) is bool
        assert out.is_contiguous()
        self.made.pdl.append(pdl)
        attend(query, pairs, cum_q.tolist(), causal, *scales, out)


class Cutlass:
    """The compiled module behind cutlass."""

    def __init__(self, made: Made, arguments: tuple[Any, ...]) -> None:
        made.modules.append(("cutlass", True))

    def plan(self, q_offsets, kv_offsets, indptr, tiles, heads, batches, tile_size, num_heads, ctas, causal):
        items = int((q_offsets.diff() + tile_size - 1).div(tile_size, rounding_mode="floor").sum()) * num_heads
        assert items <= len(tiles), "overruns its buffers"

    def run(
        self, workspace, q, k, v, q_offsets, kv_offsets, indptr, tiles, heads, batches, out, lse, causal, sm_scale,
        q_scale, k_scale, v_scale, o_scale, max_q,
    ):  # fmt: skip
        assert q_offsets.dtype is kv_offsets.dtype is torch.int32
        assert q.dtype is k.dtype is v.dtype
        assert out.dtype is (q.dtype if q.dtype.itemsize == 2 else torch.bfloat16)
        starts = kv_offsets.tolist()
        pairs = [(k[a:b], v[a:b]) for a, b in pairwise(starts)]
        attend(q, pairs, q_offsets.tolist(), causal == CAUSAL, sm_scale * q_scale * k_scale, v_scale / o_scale, out)


def cudnn(
    q, k_cache, v_cache, scale, workspace_buffer, *, max_token_per_sequence, max_sequence_kv, causal, return_lse,
    actual_seq_lens_q, actual_seq_lens_kv, block_tables=None, q_scale=None, k_scale=None, v_scale=None,
    batch_offsets_q, batch_offsets_o=None, batch_offsets_k=None, batch_offsets_v=None, batch_offsets_stats=None,
    batch_offsets_units="elements", is_cuda_graph_compatible=False, out, o_data_type, lse=None, lse_base="log2",
):  # fmt: skip
    """In place of the library's call of cuDNN."""
    assert (return_lse, o_data_type) == (False, out.dtype)
    assert q.is_contiguous()
    assert out.is_contiguous()
    lengths = [lens.flatten().tolist() for lens in (actual_seq_lens_q, actual_seq_lens_kv)]
    assert actual_seq_lens_q.shape == actual_seq_lens_kv.shape == (len(lengths[0]), 1, 1, 1)
    assert max(lengths[0]) <= max_token_per_sequence
    assert max(lengths[1]) <= max_sequence_kv
    elements = batch_offsets_units == "elements"

    def starts(offsets, tensor):
        width = tensor[0].numel() if elements else 1
        assert not elements or offsets.dtype is torch.int64, "32 bits do not count all elements"
        assert not (offsets % width).any()
        return (offsets // width).tolist()

    first = starts(batch_offsets_q, q)
    assert batch_offsets_o is None or starts(batch_offsets_o, out) == first
    assert [b - a for a, b in pairwise(first)] == lengths[0]
    if block_tables is None:
        begins = [starts(batch_offsets_k, k_cache)[:-1], starts(batch_offsets_v, v_cache)[:-1]]
        pairs = [
            (k_cache[of_keys : of_keys + length], v_cache[of_values : of_values + length])
            for of_keys, of_values, length in zip(*begins, lengths[1], strict=True)
        ]
    else:
        pairs = [
            tuple(gathered(cache, table[: -(-length // cache.shape[2])], length) for cache in (k_cache, v_cache))
            for table, length in zip(block_tables, lengths[1], strict=True)
        ]
    scales = [1.0 if given is None else _scalar(given, q) for given in (q_scale, k_scale, v_scale)]
    attend(q, pairs, first, causal, scale * scales[0] * scales[1], scales[2], out)
    return out, None


def _scalar(scale: torch.Tensor, q: torch.Tensor) -> float:
    assert (scale.dtype, scale.numel(), q.dtype.itemsize) == (torch.float32, 1, 1)
    return float(scale)
