"""What FP8 elements stand for, and the softmax scale."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import LARGEST, Scales, scales_of, softmax_scale
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank

FP8 = [DType.FP8_E4M3, DType.FP8_E5M2]
SIXTEEN_BITS = [DType.BFLOAT16, DType.FLOAT16]


def flags(q_dtype=DType.BFLOAT16, kv_dtype=DType.BFLOAT16, head_dim_qk=128, head_dim_vo=None):
    shape = {"num_qo_heads": 1, "num_kv_heads": 1, "head_dim_qk": head_dim_qk, "head_dim_vo": head_dim_vo}
    return AttentionFlags(batch_size=1, s_kv=1, q_dtype=q_dtype, kv_dtype=kv_dtype, **shape)


@pytest.mark.parametrize("q_dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("kv_dtype", SIXTEEN_BITS)
def test_formats_of_16_bits_stand_for_themselves(q_dtype, kv_dtype):
    assert scales_of(flags(q_dtype, kv_dtype)) == Scales(1, 1, 1)


@pytest.mark.parametrize("fp8", FP8)
def test_each_operand_has_the_scale_of_its_own_format(fp8):
    q, k, v = (LARGEST[name] / 448 for name in "qkv")
    assert scales_of(flags(fp8, fp8)) == Scales(q, k, v)
    assert scales_of(flags(DType.BFLOAT16, fp8)) == Scales(1, k, v)
    assert scales_of(flags(fp8, DType.BFLOAT16)) == Scales(q, 1, 1)


def test_no_two_scales_are_the_same_nor_one():
    """One that is forgotten, or taken from another operand, shows: it is more than the checks allow."""
    scales = [*vars(scales_of(flags(*2 * [DType.FP8_E4M3]))).values(), 1.0]
    for first in range(4):
        for second in range(first):
            assert abs(math.log(scales[first] / scales[second])) > 0.15


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("operand", ["q", "k", "v"])
def test_no_standard_normal_number_saturates(operand, fp8):
    scale = getattr(scales_of(flags(fp8, fp8)), operand)
    drawn = TensorFactory("cpu", 42, 1 << 30, SingleRank()).normal("x", (1 << 18,), fp8, scale).float()
    assert float(drawn.abs().max()) < 448
    assert float(drawn.std() * scale) == pytest.approx(1, rel=0.02)
    assert (torch.tensor(8.0) / scale).to(fp8.torch).float() <= 448


@pytest.mark.parametrize("head_dim_vo", [None, 64])
def test_the_softmax_scale_is_that_of_the_keys(head_dim_vo):
    assert softmax_scale(flags(head_dim_qk=192, head_dim_vo=head_dim_vo)) == 0.07216878364870323  # as in the documents
    assert softmax_scale(flags(head_dim_qk=64, head_dim_vo=head_dim_vo)) == 0.125
