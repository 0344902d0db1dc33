"""RoPE, FP8 quantisation and a write of keys and values to the paged cache, in one; queries are returned."""

from __future__ import annotations

from functools import partial
from typing import Any

from flashinfer_perf.checks.slots import Fp8Slots
from flashinfer_perf.core.routine import Fact, routine
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.attention.paging import Pages, shuffled_pages
from flashinfer_perf.routines.rope import backends, calls, eager, inputs, quantising, reference, work
from flashinfer_perf.routines.rope.flags import HND, WHOLE_PAIRS, RopeFlags, rotated
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Check, Problem, Shown

CACHES = ("k_cache", "v_cache")
WHERE = ("kv_indices", "kv_indptr", "batch_indices", "positions")


@routine(
    "rope_quantize_fp8_append_paged_kv_cache",
    flags=RopeFlags,
    uses=(*calls.SHAPE, *quantising.FLAGS, "page_size", "kv_layout"),
    rules=WHOLE_PAIRS,
    facts=(Fact("no_rope_dim", "dimensions of a head that are not rotated"),),
)
def rope_quantize_fp8_append_paged_kv_cache(case: RopeFlags, make: TensorFactory) -> Problem:
    """RoPE with FP8 quantization and paged KV cache append (SM8.9+)."""
    rest = case.head_dim - rotated(case)
    tensors = quantising.tensors(case, make, rotated(case), rest)  # first: it refuses what is far too large
    pages = shuffled_pages(make, torch.full((case.batch_size,), case.seq_len), case.seq_len, case.page_size)
    tensors |= {
        "v": make.normal("v", (case.tokens, case.num_kv_heads, case.head_dim), case.input_dtype),
        **{name: make.normal(name, _cache_shape(case, pages), case.quant_dtype) for name in CACHES},
        **_places(case, make, pages),
    }
    return Problem(
        tensors=tensors,
        reference=partial(reference.appended, slot_dim=_slot_dim(case), **quantising.scales(case)),
        work=work.appended(case),
        checks=_checks(case, tensors, pages),
        ranks=make.ranks,
        shown=_shown(case, tensors, rest),
        facts={"no_rope_dim": rest},
    )


@rope_quantize_fp8_append_paged_kv_cache.backend("cuda", requires=backends.APPENDS, documented=backends.WITH_FP8)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    written = quantising.written(case, problem, quantising.QUERY_PARTS)
    kwargs = {**quantising.library_arguments(case, problem), **_cache_arguments(case, problem), **written}
    return Launch(
        flashinfer.rope.rope_quantize_fp8_append_paged_kv_cache,
        kwargs=kwargs,
        mutates=(*written, "paged_kv_cache"),
    )


@rope_quantize_fp8_append_paged_kv_cache.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    written = quantising.written(case, problem, quantising.QUERY_PARTS)
    common = {**quantising.arguments(case, problem), "quantize_dtype": case.quant_dtype}
    kwargs = {**common, **_cache_arguments(case, problem), **written}
    append = eager.rope_quantize_fp8_append_paged_kv_cache
    return Launch(append, kwargs=kwargs, mutates=(*written, "paged_kv_cache"))


def _slot_dim(case: RopeFlags) -> int:
    return 2 if case.kv_layout == HND else 1


def _cache_shape(case: RopeFlags, pages: Pages) -> tuple[int, ...]:
    """(pages, tokens, heads, dim), or with heads before tokens."""
    inner = (case.page_size, case.num_kv_heads)
    return (pages.in_pool, *(inner[::-1] if case.kv_layout == HND else inner), case.head_dim)


def _places(case: RopeFlags, make: TensorFactory, pages: Pages) -> dict[str, torch.Tensor]:
    """int32, on the device: which pages are whose, and of each token its sequence and its place in it."""
    sequences = torch.arange(case.batch_size, dtype=torch.int32, device=make.device)
    return {
        "kv_indices": pages.kv_indices,
        "kv_indptr": pages.kv_indptr,
        "batch_indices": sequences.repeat_interleave(case.seq_len),
        "positions": inputs.positions(case, make),
    }


def _cache_arguments(case: RopeFlags, problem: Problem) -> dict[str, Any]:
    return {
        "v": problem["v"],
        "paged_kv_cache": tuple(problem[name] for name in CACHES),
        **{name: problem[name] for name in WHERE},
        "page_size": case.page_size,
        "kv_layout": case.kv_layout,
    }


def _checks(case: RopeFlags, tensors: dict[str, torch.Tensor], pages: Pages) -> dict[str, Check]:
    """Of the queries, and of the caches slot by slot."""
    slots = Fp8Slots(_written(case, pages), _slot_dim(case))
    queries = quantising.checks(tensors, quantising.QUERY_PARTS)
    return {**queries, **{f"paged_kv_cache.{number}": slots for number in range(len(CACHES))}}


def _written(case: RopeFlags, pages: Pages) -> torch.Tensor:
    """(pages, slots) bool: a sequence fills its pages in the order of its table, up to its length."""
    written = torch.zeros(pages.in_pool, case.page_size, dtype=torch.bool, device=pages.block_tables.device)
    for table in pages.block_tables.long():
        own = torch.arange(pages.per_sequence * case.page_size, device=table.device) < case.seq_len
        written[table] = own.view(pages.per_sequence, case.page_size)
    return written


def _shown(case: RopeFlags, tensors: dict[str, torch.Tensor], rest: int) -> tuple[Shown, ...]:
    parts = (*quantising.PARTS, "v", *quantising.FROM_CACHE, *CACHES, *WHERE)
    return (
        *inputs.shapes({name: tensors.get(name) for name in parts}),
        *inputs.values(
            rotary_dim=rotated(case),
            no_rope_dim=rest,
            is_neox=not case.interleave,
            page_size=case.page_size,
            kv_layout=case.kv_layout,
        ),
    )
