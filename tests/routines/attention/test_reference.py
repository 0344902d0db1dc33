"""The truth about attention, against the definition written out with loops and in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.routines.attention import reference
from flashinfer_perf.routines.attention.sequences import Sequences


def by_definition(queries, keys, values, q_lens, causal, sm_scale):
    """Token by token and head by head. Keys and values are lists of (kv, kv heads, dim)."""
    out, token = torch.zeros(len(queries), queries.shape[1], values[0].shape[-1], dtype=torch.float64), 0
    for sequence, q_len in enumerate(q_lens):
        kv_len = len(keys[sequence])
        for position in range(q_len):
            seen = kv_len - q_len + position + 1 if causal else kv_len  # the last query sees all keys
            for head in range(queries.shape[1]):
                kv_head = head * keys[sequence].shape[1] // queries.shape[1]
                query, weights = queries[token, head].double(), []
                for key in range(seen):
                    score = float(query @ keys[sequence][key, kv_head].double()) * sm_scale
                    weights.append(math.exp(score))
                for key, weight in enumerate(weights):
                    out[token, head] += weight / sum(weights) * values[sequence][key, kv_head].double()
            token += 1
    return out


def lengths(q_lens, kv_lens):
    return Sequences(*(torch.tensor(lens, dtype=torch.int32) for lens in (q_lens, kv_lens)))


def drawn(q_lens, kv_lens, heads=(2, 1), dims=(4, 4), dtype=torch.float32, seed=0):
    """Queries, keys and values; heads of query and key, dims of key and value."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return (
        normal(sum(q_lens), heads[0], dims[0]),
        [normal(kv_len, heads[1], dims[0]) for kv_len in kv_lens],
        [normal(kv_len, heads[1], dims[1]) for kv_len in kv_lens],
    )


def computed(tensors, q_lens, kv_lens, causal=False, rows=None, sm_scale=0.4):
    queries, keys, values = tensors
    chosen = None if rows is None else torch.tensor(rows)
    return reference.attention(
        queries,
        lambda sequence: (keys[sequence], values[sequence]),
        lengths(q_lens, kv_lens),
        causal=causal,
        sm_scale=sm_scale,
        rows=chosen,
    )


def assert_is_the_definition(tensors, q_lens, kv_lens, causal, rows=None, sm_scale=0.4):
    found = computed(tensors, q_lens, kv_lens, causal, rows, sm_scale)
    expected = by_definition(*tensors, q_lens, causal, sm_scale)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected if rows is None else expected[rows], rtol=1e-5, atol=1e-5)


SHAPES = [([1], [1]), ([1, 1], [5, 1]), ([3, 1, 4], [3, 1, 4]), ([2, 1, 3], [5, 4, 3])]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_lens", "kv_lens"), SHAPES)
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (3, 1)])
def test_it_is_the_definition(q_lens, kv_lens, heads, causal):
    assert_is_the_definition(drawn(q_lens, kv_lens, heads), q_lens, kv_lens, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dims", [(6, 4), (3, 7), (1, 1)])
def test_values_may_have_another_dimension(dims, causal):
    assert_is_the_definition(drawn([2, 1], [4, 2], (4, 2), dims), [2, 1], [4, 2], causal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("rows", [None, [0, 2]])
def test_operands_of_any_format_are_taken_as_they_are(dtype, rows):
    assert_is_the_definition(drawn([2, 1], [4, 2], dtype=dtype), [2, 1], [4, 2], True, rows)


def test_without_a_mask_queries_may_be_longer_than_keys():
    assert_is_the_definition(drawn([5, 3], [2, 3]), [5, 3], [2, 3], causal=False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [[0], [6], [0, 6], [2, 3], [1, 4, 5], [3, 4, 5], list(range(7))])
def test_rows_are_tokens_in_their_order(rows, causal):
    q_lens, kv_lens = [3, 1, 3], [5, 2, 3]
    assert_is_the_definition(drawn(q_lens, kv_lens), q_lens, kv_lens, causal, rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [None, [0, 2, 3, 4]])
@pytest.mark.parametrize("scores", [1, 20, 30, 44, 1 << 26])
def test_scores_are_held_a_part_at_a_time(scores, rows, causal, monkeypatch):
    monkeypatch.setattr(reference, "SCORES", scores)
    at_once, held = reference._attend_at_once, []

    def watched(queries, keys, *others):
        held.append((len(queries), queries.shape[0] * queries.shape[1] * keys.shape[-1]))
        return at_once(queries, keys, *others)

    monkeypatch.setattr(reference, "_attend_at_once", watched)
    q_lens, kv_lens = [4, 2], [5, 2]
    assert_is_the_definition(drawn(q_lens, kv_lens), q_lens, kv_lens, causal, rows)
    assert sum(queries for queries, _ in held) == (6 if rows is None else 4)
    assert all(count <= scores or queries == 1 for queries, count in held)
    if scores == 1 << 26:
        assert len(held) == 2  # a product for each sequence
    if scores == 20:
        assert held[0] == (2, 20)  # as many as fit


def test_large_scores_do_not_overflow():
    """The softmax subtracts the largest score: exp(1e4) is infinite in fp32."""
    queries = torch.full((1, 1, 2), 100.0)
    keys = [torch.tensor([[[100.0, 0.0]], [[50.0, 0.0]]])]
    assert computed((queries, keys, keys), [1], [2], sm_scale=1.0).tolist() == [[[100.0, 0.0]]]


def test_a_causal_query_ignores_whatever_is_behind_it():
    """Infinities of a poisoned page, say, would show; the mask is aligned to the end."""
    queries, keys, values = drawn([2], [5])
    spoilt = [keys[0].clone()]
    spoilt[0][4] = 1e30
    before, after = (computed((queries, k, values), [2], [5], causal=True) for k in (keys, spoilt))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    batch=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dims=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    causal=st.booleans(),
    sm_scale=st.floats(0.05, 2),
    data=st.data(),
)
def test_any_small_case_is_the_definition(batch, kv_heads, group, dims, causal, sm_scale, data):
    q_lens, kv_lens = [q for q, _ in batch], [q + more for q, more in batch]
    tokens = range(sum(q_lens))
    rows = data.draw(st.none() | st.sets(st.sampled_from(tokens), min_size=1).map(sorted))
    tensors = drawn(q_lens, kv_lens, (kv_heads * group, kv_heads), dims, seed=data.draw(st.integers(0, 1000)))
    assert_is_the_definition(tensors, q_lens, kv_lens, causal, rows, sm_scale)
