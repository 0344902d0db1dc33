"""Flags of attention: what follows from others."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.attention.flags import OPERANDS, AttentionFlags

NEEDED = {"batch_size": 2, "s_kv": 8, "num_qo_heads": 4, "num_kv_heads": 1}


@pytest.mark.parametrize(
    ("typed", "qk", "vo"),
    [
        ({"head_dim_qk": 192}, 192, 192),
        ({"head_dim_qk": 192, "head_dim_vo": 128}, 192, 128),
        ({"head_dim_vo": 128}, None, 128),
        ({}, None, None),
    ],
)
def test_the_value_is_as_long_as_the_key_by_default(typed, qk, vo):
    flags = AttentionFlags(**NEEDED, **typed)
    assert (flags.head_dim_qk, flags.head_dim_vo) == (qk, vo)


@pytest.mark.parametrize("kv_dtype", OPERANDS)
@pytest.mark.parametrize(
    ("q_dtype", "out_dtype"),
    [
        (DType.BFLOAT16, DType.BFLOAT16),
        (DType.FLOAT16, DType.FLOAT16),
        (DType.FP8_E4M3, DType.BFLOAT16),
        (DType.FP8_E5M2, DType.BFLOAT16),
    ],
)
def test_the_output_has_the_querys_format_or_bfloat16_for_fp8(q_dtype, kv_dtype, out_dtype):
    assert AttentionFlags(**NEEDED, q_dtype=q_dtype, kv_dtype=kv_dtype).out_dtype is out_dtype
