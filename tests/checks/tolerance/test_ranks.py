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
