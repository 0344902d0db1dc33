from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_a_sum_of_ranks_allows_roundings_and_no_rank_too_few(ranks: int, dtype: DType):
    inputs = torch.randn(ranks, 16, 512, generator=torch.Generator().manual_seed(ranks)).to(dtype.torch)
    check, truth = tolerance.for_sum_of_ranks(dtype, ranks), {"out": inputs.double().sum(dim=0)}
    total = inputs[0]
    for addend in inputs[1:]:
        total = total + addend
    assert check.judge("out", {"out": total}, truth).passed
    assert not check.judge("out", {"out": (truth["out"] - inputs[0].double()).to(dtype.torch)}, truth).passed


def test_an_element_far_larger_than_its_row_may_err_as_often_as_it_was_rounded():
    """Sums over 2 ranks, a residual and a norm: 4.0986 came back as 4.0625; the next bfloat16 below is too far."""
    check = tolerance.for_sum_of_ranks(DType.BFLOAT16, 4)
    truth = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth[0, 7] = 4.0986
    found = truth.bfloat16()
    for value, allowed in ((4.0625, True), (4.0, False)):
        found[0, 7] = value
        assert check.judge("out", {"out": found}, {"out": truth}).passed is allowed
