"""FLOPs and bytes by the documented formulas."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.sequences import Sequences, prefilling
from flashinfer_perf.routines.attention.work import attention_work, exact_flops
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank

Q_LENS, KV_LENS = [3, 1, 4], [5, 1, 9]
HEADS, KV_HEADS, D, DV = 6, 2, 16, 10


def flags(**other):
    shape = {"num_qo_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim_qk": D, "head_dim_vo": DV}
    return AttentionFlags(**{"batch_size": 3, "s_qo": 4, "s_kv": 9, **shape, **other})


def sequences(q_lens=Q_LENS, kv_lens=KV_LENS):
    return Sequences(*(torch.tensor(lens, dtype=torch.int32) for lens in (q_lens, kv_lens)))


def products(q_lens, kv_lens, causal):
    """FLOPs counted pair by pair, as the masks have them: two for each element of a key and of a value."""
    pairs = 0
    for q_len, kv_len in zip(q_lens, kv_lens, strict=True):
        for position in range(q_len):
            pairs += kv_len - (q_len - 1 - position) if causal else kv_len
    return 2 * pairs * HEADS * (D + DV)


def test_flops_without_a_mask_count_every_pair():
    assert attention_work(flags(), sequences(), causal=False).flops == 2 * (15 + 1 + 36) * HEADS * (D + DV)
    assert attention_work(flags(), sequences(), causal=False).flops == products(Q_LENS, KV_LENS, causal=False)


def test_decoding_is_the_formula_with_queries_of_one_token():
    found = attention_work(flags(s_qo=1), sequences([1, 1, 1], KV_LENS), causal=False)
    assert found.flops == 2 * sum(KV_LENS) * HEADS * (D + DV)


def test_flops_with_a_mask_are_the_documented_ones():
    """sum q (2 kv - q) Hq (D + Dv)"""
    documented = 3 * (10 - 3) + 1 * (2 - 1) + 4 * (18 - 4)
    assert attention_work(flags(), sequences(), causal=True).flops == documented * HEADS * (D + DV)


@pytest.mark.parametrize(("q_lens", "kv_lens"), [(Q_LENS, KV_LENS), ([7], [7]), ([1, 1], [1, 8])])
def test_the_exact_count_has_the_whole_diagonal(q_lens, kv_lens):
    (exact,) = exact_flops(flags(), sequences(q_lens, kv_lens), causal=True).values()
    assert exact == products(q_lens, kv_lens, causal=True)
    documented = attention_work(flags(), sequences(q_lens, kv_lens), causal=True).flops
    assert exact - documented == sum(q_lens) * HEADS * (D + DV)


def test_the_exact_count_is_a_fact_of_its_own_under_a_mask_only():
    assert list(exact_flops(flags(), sequences(), causal=True)) == ["exact_flops"]
    assert exact_flops(flags(), sequences(), causal=False) == {}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype", "q_bytes", "kv_bytes", "out_bytes"),
    [
        (DType.BFLOAT16, DType.BFLOAT16, 2, 2, 2),
        (DType.FLOAT16, DType.FLOAT16, 2, 2, 2),
        (DType.BFLOAT16, DType.FP8_E4M3, 2, 1, 2),
        (DType.FP8_E4M3, DType.FP8_E4M3, 1, 1, 2),
        (DType.FP8_E5M2, DType.FP8_E4M3, 1, 1, 2),
    ],
)
def test_every_operand_is_moved_once_in_its_own_format(q_dtype, kv_dtype, q_bytes, kv_bytes, out_bytes, causal):
    """Outputs of FP8 queries are bfloat16; a mask saves no bytes."""
    query, output = 8 * HEADS * D * q_bytes, 8 * HEADS * DV * out_bytes
    keys, values = 15 * KV_HEADS * D * kv_bytes, 15 * KV_HEADS * DV * kv_bytes
    found = attention_work(flags(q_dtype=q_dtype, kv_dtype=kv_dtype), sequences(), causal)
    assert found.bytes == query + keys + values + output


def test_numbers_beyond_32_bits_are_exact():
    huge = sequences([2**20 + 1], [2**20 + 1])
    assert attention_work(flags(), huge, causal=False).flops == 2 * (2**20 + 1) ** 2 * HEADS * (D + DV)
    assert attention_work(flags(), huge, causal=True).flops == (2**20 + 1) ** 2 * HEADS * (D + DV)


def test_the_documents_example():
    """Ragged prefill of DeepSeek-R1's shape: all three rates follow from the work, as far as the times are given."""
    shape = {"num_qo_heads": 128, "num_kv_heads": 128, "head_dim_qk": 192, "head_dim_vo": 128}
    case = flags(batch_size=16, s_qo=1024, s_kv=1024, causal=True, random_actual_seq_len=True, **shape)
    work = attention_work(case, prefilling(case, TensorFactory("cpu", 42, 1 << 30, SingleRank())), causal=True)
    for median_ms, tflops, tb_per_s in ((0.495, 219.336, 1.736), (0.530, 204.674, 1.620), (0.313, 346.715, 2.745)):
        slow, fast = median_ms + 0.0005, median_ms - 0.0005
        assert work.tflops_per_s(slow) - 0.0005 <= tflops <= work.tflops_per_s(fast) + 0.0005
        assert work.tb_per_s(slow) - 0.0005 <= tb_per_s <= work.tb_per_s(fast) + 0.0005
        exact_ms = work.flops / (1e9 * tflops)  # known better from the rate than from the rounded time
        assert work.tb_per_s(exact_ms) == pytest.approx(tb_per_s, abs=0.0006)
    assert work == Work(flops=sum(q * q for q in DOCUMENTED) * 128 * 320, bytes=5242 * 128 * 640 * 2)


DOCUMENTED = [103, 436, 861, 271, 107, 72, 701, 21, 615, 122, 467, 215, 331, 459, 88, 373]
