from __future__ import annotations

import json

import pytest

from flashinfer_perf.core.dtypes import DType

PACKED = (DType.NVFP4, DType.MXFP4)


@pytest.mark.parametrize("dtype", DType)
def test_has_one_spelling_everywhere(dtype):
    assert str(dtype) == f"{dtype}" == dtype.value == json.loads(json.dumps(dtype))
    assert repr(dtype) == repr(dtype.value)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype not in PACKED])
def test_its_torch_dtype_has_its_size(dtype):
    assert dtype.torch.itemsize == dtype.bytes == dtype.bits / 8
    assert dtype.torch.is_floating_point


@pytest.mark.parametrize("dtype", PACKED)
def test_fp4_is_half_a_byte_packed_in_uint8(dtype):
    assert dtype.bytes == 0.5
    assert str(dtype.torch) == "torch.uint8"


def test_fp8_names_are_the_finite_e4m3_and_the_ieee_like_e5m2():
    assert str(DType.FP8_E4M3.torch) == "torch.float8_e4m3fn"
    assert str(DType.FP8_E5M2.torch) == "torch.float8_e5m2"
