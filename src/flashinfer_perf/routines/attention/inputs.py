"""Problems of attention over a paged cache: decoding and prefill differ in their sequences and masks only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.sampled import in_rows
from flashinfer_perf.core.routine import Fact, Rule
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention import paging, reference
from flashinfer_perf.routines.attention.backends import dims
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import Scales, scales_of, softmax_scale
from flashinfer_perf.routines.attention.rows import reference_rows
from flashinfer_perf.routines.attention.sequences import Sequences, offsets
from flashinfer_perf.routines.attention.work import attention_work, exact_flops
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Check, Problem, Shown

FACTS = (
    Fact("avg_actual_seq_len", "mean length, rounded down, of the key-value sequences (prefill: of the queries)"),
    Fact("plan_ms", "time that the wrapper's plan took"),
    Fact("exact_flops", "FLOPs with the exact count of pairs under a causal mask, where the documented one differs"),
)
RENAMED = {"trtllm-gen-native": "trtllm-native"}
whole_groups = Rule(
    lambda case: case.num_qo_heads % case.num_kv_heads == 0,
    "num_kv_heads ({num_kv_heads}) must divide num_qo_heads ({num_qo_heads})",
)
seen_queries = Rule(
    lambda case: not case.causal or case.s_qo <= case.s_kv,
    "s_qo > s_kv ({s_qo} > {s_kv}) is not supported with --causal: the first queries would see no key",
)


def paged_problem(case: AttentionFlags, make: TensorFactory, sequences: Sequences, causal: bool) -> Problem:
    """Queries (tokens, heads, dim) that lie sequence by sequence; keys and values in pages of one pool."""
    scales, (dim_qk, dim_vo) = scales_of(case), dims(case)
    pages = paging.shuffled_pages(make, sequences.kv_lens, case.s_kv, case.page_size)
    k_cache, v_cache = paging.key_value_pool(
        make, pages.in_pool, case.num_kv_heads, case.page_size, (dim_qk, dim_vo), case.kv_dtype, scales.k
    )
    tensors = {
        "q": make.normal("q", (sequences.q_tokens, case.num_qo_heads, dim_qk), case.q_dtype, scales.q),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "qo_indptr": offsets(sequences.q_lens).to(make.device),
        "q_len": sequences.q_lens.to(make.device),
        "kv_token_indptr": offsets(sequences.kv_lens).to(make.device),
        **vars(pages),
    }
    return attention_problem(case, make, sequences, causal, tensors, pairs_of_pages)


def attention_problem(
    case: AttentionFlags,
    make: TensorFactory,
    sequences: Sequences,
    causal: bool,
    tensors: Mapping[str, torch.Tensor],
    pairs: Callable[..., reference.KeysAndValues],
) -> Problem:
    """Of queries that lie sequence by sequence; ``pairs`` finds a sequence's keys and values among the tensors."""
    rows = reference_rows(make, sequences, case.num_qo_heads, dims(case))
    truth = partial(
        attention_truth,
        pairs=pairs,
        sequences=sequences,
        causal=causal,
        sm_scale=softmax_scale(case),
        scales=scales_of(case),
        rows=rows,
    )
    return Problem(
        tensors=tensors,
        reference=truth,
        work=attention_work(case, sequences, causal),
        checks={"out": output_check(case, rows, sequences)},
        ranks=make.ranks,
        facts=exact_flops(case, sequences, causal),
    )


def output_check(case: AttentionFlags, rows: torch.Tensor | None, sequences: Sequences) -> Check:
    """Of the output, in the rows whose truth is computed."""
    within = tolerance.for_attention((case.q_dtype, case.kv_dtype), case.out_dtype)
    return in_rows(within, rows, sequences.q_tokens)


def attention_truth(
    *,
    q: torch.Tensor,
    pairs: Callable[..., reference.KeysAndValues],
    sequences: Sequences,
    causal: bool,
    sm_scale: float,
    scales: Scales,
    rows: torch.Tensor | None,
    **tensors: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The outputs of these rows in fp32; operands are multiplied by their scales."""
    scale = sm_scale * scales.q * scales.k
    fetch = pairs(sequences, **tensors)
    return {"out": scales.v * reference.attention(q, fetch, sequences, causal=causal, sm_scale=scale, rows=rows)}


def pairs_of_pages(
    sequences: Sequences,
    *,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    **unused: torch.Tensor,
) -> reference.KeysAndValues:
    """Keys and values of a sequence, gathered from its pages."""
    kv_lens = sequences.kv_lens.tolist()

    def fetch(sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        table, length = block_tables[sequence], kv_lens[sequence]
        return paging.gathered(k_cache, table, length), paging.gathered(v_cache, table, length)

    return fetch


def pairs_in_a_row(
    sequences: Sequences, *, k: torch.Tensor, v: torch.Tensor, **unused: torch.Tensor
) -> reference.KeysAndValues:
    """Keys and values of a sequence, which lie together."""
    starts = offsets(sequences.kv_lens).tolist()

    def fetch(sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = slice(*starts[sequence : sequence + 2])
        return k[own], v[own]

    return fetch


def length_lines(case: AttentionFlags, sequences: Sequences) -> tuple[Shown, ...]:
    """The documented lines about the sequences of a prefill."""
    if case.s_qo == case.s_kv:
        origin = "s_qo == s_kv, making actual_seq_lens_kv the same as actual_seq_lens_q"
    else:
        origin = f"s_qo {'<' if case.s_qo < case.s_kv else '>'} s_kv, sampling actual_seq_lens_kv"
    return (
        Shown(origin),
        Shown("Average actual qo seq len", sequences.average_q, level=1),
        Shown("Average actual kv seq len", sequences.average_kv, level=1),
        Shown("actual_seq_lens_q.flatten()", sequences.q_lens),
        Shown("actual_seq_lens_kv.flatten()", sequences.kv_lens),
    )


def pool_lines(case: AttentionFlags, problem: Problem) -> tuple[Shown, ...]:
    """The documented lines from the query to the page tables."""
    keys, tables = problem["k_cache"], problem["block_tables"]
    pool = paging.whole_pool(keys) if case.head_dim_qk == case.head_dim_vo else keys
    return (
        Shown("q.shape", problem["q"].shape),
        Shown("num_pages_per_seq", tables.shape[1]),
        Shown("total_num_pages", tables.numel()),
        Shown("kv_cache.shape", pool.shape),
        Shown("kv_cache.stride()", pool.stride()),
        Shown("block_tables.shape", tables.shape),
    )


def index_lines(case: AttentionFlags, problem: Problem) -> tuple[Shown, ...]:
    """The documented lines about which pages are whose, and the softmax scale."""
    names = ("kv_indptr", "kv_indices", "kv_last_page_len")
    return (*(Shown(f"{name}.shape", problem[name].shape) for name in names), Shown("scale", softmax_scale(case)))
