"""How long sequences are: as documented for seed 42, as routines need them, and never absurd."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.sequences import Sequences, decoding, offsets, prefilling
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import GIBIBYTE, problem_of

DOCUMENTED = [103, 436, 861, 271, 107, 72, 701, 21, 615, 122, 467, 215, 331, 459, 88, 373]
"""Seed 42, batch 16, longest 1024."""


def factory(seed=42, free_bytes=GIBIBYTE):
    return TensorFactory("cpu", seed, free_bytes, SingleRank())


def flags(batch_size=16, s_qo=1, s_kv=1024, random=True):
    lengths = {"batch_size": batch_size, "s_qo": s_qo, "s_kv": s_kv, "random_actual_seq_len": random}
    return AttentionFlags(num_qo_heads=1, num_kv_heads=1, **lengths)


def sequences(*q_lens, kv=None):
    both = (q_lens, q_lens if kv is None else kv)
    return Sequences(*(torch.tensor(lens, dtype=torch.int32) for lens in both))


# ---- The documented lengths ----


def test_decoding_has_the_documented_lengths():
    found = decoding(flags(), factory())
    assert found.kv_lens.tolist() == DOCUMENTED
    assert found.q_lens.tolist() == [1] * 16


@pytest.mark.parametrize("s_kv", [1024, 4096])
def test_prefill_queries_have_the_documented_lengths(s_kv):
    assert prefilling(flags(s_qo=1024, s_kv=s_kv), factory()).q_lens.tolist() == DOCUMENTED


def test_mla_has_the_documented_lengths():
    shape = "--page_size 64 --num_qo_heads 1 --head_dim_ckv 4 --head_dim_kpe 2"
    _, problem = problem_of(
        "BatchMLAPagedAttentionWrapper", f"--batch_size 16 --s_kv 1024 {shape} --random_actual_seq_len"
    )
    assert problem["kv_len"].tolist() == DOCUMENTED


@pytest.mark.parametrize("make_sequences", [decoding, prefilling])
def test_lengths_are_the_seeds_alone(make_sequences):
    first, again, other = (make_sequences(flags(s_qo=7), factory(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.kv_lens, again.kv_lens)
    assert not torch.equal(first.kv_lens, other.kv_lens)


def test_lengths_of_a_larger_batch_begin_with_those_of_a_smaller():
    few, many = (decoding(flags(batch, s_kv=500), factory()).kv_lens.tolist() for batch in (5, 64))
    assert many[:5] == few


# ---- Decoding ----


@pytest.mark.parametrize("s_qo", [1, 4, 100, 1024])
def test_a_decoded_sequence_holds_at_least_its_queries(s_qo):
    found = decoding(flags(s_qo=s_qo), factory())
    assert found.q_lens.tolist() == [s_qo] * 16
    assert found.kv_lens.tolist() == [max(length, s_qo) for length in DOCUMENTED]


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_lengths_reach_from_one_to_the_longest(longest):
    lengths = decoding(flags(4000, s_kv=longest), factory()).kv_lens
    assert (int(lengths.min()), int(lengths.max())) == (1, longest)


# ---- Prefill ----


def test_prefill_of_the_prompt_alone_attends_to_itself():
    """Where both maxima are the same, both lengths are."""
    found = prefilling(flags(s_qo=1024, s_kv=1024), factory())
    assert found.kv_lens.tolist() == found.q_lens.tolist() == DOCUMENTED


def test_longer_keys_are_drawn_after_the_queries_and_are_no_shorter():
    found = prefilling(flags(4000, s_qo=30, s_kv=40), factory())
    generator = torch.Generator().manual_seed(42)
    q_lens, kv_lens = (torch.randint(1, longest + 1, (4000,), generator=generator) for longest in (30, 40))
    assert torch.equal(found.q_lens, q_lens.int())
    assert torch.equal(found.kv_lens, torch.maximum(q_lens, kv_lens).int())
    assert (q_lens > kv_lens).any()  # or the maximum would not matter
    assert int(found.kv_lens.max()) == 40


def test_shorter_keys_are_drawn_after_the_queries_and_may_be_shorter():
    found = prefilling(flags(4000, s_qo=40, s_kv=30), factory())
    assert int(found.q_lens.max()) == 40
    assert (int(found.kv_lens.min()), int(found.kv_lens.max())) == (1, 30)
    assert (found.kv_lens < found.q_lens).any()
    assert (found.kv_lens > found.q_lens).any()


# ---- Both ----


@pytest.mark.parametrize(
    ("make_sequences", "s_qo"), [(decoding, 3), (prefilling, 3), (prefilling, 77), (prefilling, 99)]
)
def test_all_are_the_longest_unless_random(make_sequences, s_qo):
    found = make_sequences(flags(3, s_qo, 77, random=False), factory())
    assert (found.q_lens.tolist(), found.kv_lens.tolist()) == ([s_qo] * 3, [77] * 3)


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize(
    ("make_sequences", "s_qo"), [(decoding, 5), (prefilling, 5), (prefilling, 64), (prefilling, 70)]
)
def test_lengths_are_int32_on_the_cpu(make_sequences, s_qo, random):
    found = make_sequences(flags(6, s_qo, 64, random), factory())
    for lengths in (found.q_lens, found.kv_lens):
        assert (lengths.shape, lengths.dtype, lengths.device.type) == ((6,), torch.int32, "cpu")


def test_tokens_are_added_up_beyond_32_bits():
    found = sequences(2**31 - 1, 2**31 - 1, kv=(5, 6))
    assert (found.q_tokens, found.kv_tokens) == (2**32 - 2, 11)


def test_averages_are_rounded_down():
    found = sequences(1, 2, 2, kv=(3, 4, 4))
    assert (found.average_q, found.average_kv) == (1, 3)
    assert decoding(flags(), factory()).average_kv == 327  # of the documents' example


def test_offsets_are_where_sequences_start_and_the_end():
    found = offsets(torch.tensor([3, 1, 4], dtype=torch.int32))
    assert found.tolist() == [0, 3, 4, 8]
    assert found.dtype is torch.int32


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("make_sequences", [decoding, prefilling])
@pytest.mark.parametrize("batch_size", [1 << 28, 1 << 40, 1 << 70])
def test_absurd_batches_are_refused_before_anything_is_allocated(make_sequences, batch_size, random):
    with pytest.raises(DoesNotFit, match="sequence_lengths") as refused:
        make_sequences(flags(batch_size, random=random), factory())
    assert refused.value.needed_bytes == 2 * 4 * batch_size  # both lengths


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("make_sequences", [decoding, prefilling])
def test_lengths_are_on_the_account(make_sequences, random):
    make = factory(free_bytes=1000)
    make_sequences(flags(10, random=random), make)
    with pytest.raises(DoesNotFit) as refused:
        make.reserve("more", (821,), DType.FP8_E4M3)
    assert refused.value.needed_bytes == 80 + 821
