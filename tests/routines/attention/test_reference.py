"""The truth about attention, against the definition written out with loops and in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.routines.attention import reference


def by_definition(q_nope, q_pe, ckv_cache, kpe_cache, block_tables, kv_len, sm_scale):
    """Token by token: page block_tables[b, t // page], row t % page."""
    page = ckv_cache.shape[1]
    out = torch.zeros(q_nope.shape, dtype=torch.float64)
    for sequence in range(len(kv_len)):
        for head in range(q_nope.shape[1]):
            rows = []
            for token in range(int(kv_len[sequence])):
                place = (int(block_tables[sequence, token // page]), token % page)
                score = q_nope[sequence, head].double() @ ckv_cache[place].double()
                score = score + q_pe[sequence, head].double() @ kpe_cache[place].double()
                rows.append((math.exp(float(score) * sm_scale), ckv_cache[place].double()))
            total = sum(weight for weight, _ in rows)
            out[sequence, head] = sum(weight / total * row for weight, row in rows)
    return out


@pytest.mark.parametrize(("page", "lengths"), [(1, [1, 3]), (4, [1, 4, 5]), (16, [2, 9])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mla_decode(page, lengths, dtype):
    generator = torch.Generator().manual_seed(0)
    heads, ckv, kpe, per_sequence = 3, 8, 4, -(-max(lengths) // page)
    pool = len(lengths) * per_sequence

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {
        "q_nope": normal(len(lengths), heads, ckv),
        "q_pe": normal(len(lengths), heads, kpe),
        "ckv_cache": normal(pool, page, ckv),
        "kpe_cache": normal(pool, page, kpe),
        "block_tables": torch.randperm(pool, generator=generator).view(len(lengths), per_sequence).int(),
        "kv_len": torch.tensor(lengths, dtype=torch.int32),
    }
    found = reference.mla_decode(**tensors, sm_scale=0.4, kv_indices=torch.zeros(0))
    assert set(found) == {"out"}
    assert found["out"].dtype is torch.float32
    torch.testing.assert_close(found["out"].double(), by_definition(**tensors, sm_scale=0.4), rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow():
    """The softmax subtracts the largest score: exp(1e4) is infinite in fp32."""
    q = torch.full((1, 1, 2), 100.0)
    cache = torch.tensor([[[100.0, 0.0], [50.0, 0.0]]])
    out = reference.mla_decode(
        q, torch.zeros(1, 1, 1), cache, torch.zeros(1, 2, 1), torch.tensor([[0]]), torch.tensor([2]), sm_scale=1.0
    )["out"]
    assert out.tolist() == [[[100.0, 0.0]]]


def test_gather_takes_the_first_rows_of_the_pages_in_order():
    cache = torch.arange(12.0).view(3, 2, 2)
    table = torch.tensor([2, 0, 1], dtype=torch.int32)
    assert reference.gather(cache, table, 3).tolist() == [[8, 9], [10, 11], [0, 1]]
    assert reference.gather(cache, table, 1).tolist() == [[8, 9]]
