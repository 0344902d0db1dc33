"""Bytes between ranks; golden numbers from moe_a2a_dispatch_combine's documented formula, applied to true row sizes."""

from __future__ import annotations

import numpy
import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.traffic import Traffic, row_bytes, traffic
from tests.routines.moe_comm.ranks import Rank


def flags_of(**values):
    defaults = {"num_tokens": 4, "hidden_size": 8, "num_experts": 4, "top_k": 2, "input_dtype": DType.BFLOAT16}
    return MoeCommFlags(**{**defaults, **values})


def total(case, ids_by_rank):
    """Over all ranks, each of which has its own tokens."""
    said = []
    for rank, ids in enumerate(ids_by_rank):
        own = Rank(rank, len(ids_by_rank))
        traffic(case, ids, own)
        said.append(own.said)
    return traffic(case, ids_by_rank[0], Rank(0, len(ids_by_rank), tuple(said)))


def test_a_small_example():
    """Two ranks with two experts each, one token each. Rank 0's wants experts 0 and 1, which it owns; rank 1's wants
    0 and 2: one row there, with both its choices, and one row back.
    """
    ids = [torch.tensor([[0, 1]]), torch.tensor([[0, 2]])]
    assert total(flags_of(num_tokens=1), ids) == (8 * 2 + 2 * 8, 8 * 2)


@pytest.mark.parametrize(
    ("format", "dispatched"),
    [(None, 34128000), ("fp8", 17139840), ("nvfp4", 9707520), ("fp8_block_scale", 17670720)],
)
def test_the_golden_case(format, dispatched):
    """8 ranks, 64 tokens each, 256 experts, top 8, hidden 7168, bf16: 2370 rows between ranks. Upstream counts
    34004920 bytes for fp8_block_scale: as if it were not quantised, and without the choices of other ranks' experts.
    """
    generator = numpy.random.default_rng(0)
    ids = [torch.tensor([generator.permutation(256)[:8].tolist() for _ in range(64)]) for _ in range(8)]
    case = flags_of(num_tokens=64, hidden_size=7168, num_experts=256, top_k=8, quant_dtype=format)
    assert total(case, ids) == (dispatched, 33976320)


def test_one_rank_has_no_traffic():
    assert total(flags_of(), [torch.tensor([[0, 1], [2, 3]])]) == (0, 0)


def test_a_row_has_its_elements_its_scales_and_its_choices():
    wide = {"hidden_size": 256, "top_k": 3, "input_dtype": DType.FLOAT16}
    assert row_bytes(flags_of(**wide)) == (512 + 24, 512)
    assert row_bytes(flags_of(**wide, quant_dtype="nvfp4")) == (128 + 16 + 24, 512)
    assert row_bytes(flags_of(**wide, quant_dtype="fp8_block_scale")) == (256 + 8 + 24, 512)


def test_its_text():
    assert Traffic(1 << 20, 3 << 19).text == "dispatch=1.000 MiB, combine=1.500 MiB"
