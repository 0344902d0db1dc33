"""FLOPs and bytes by the documented formulas."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.quantization.work import quantise

E = 2048 * 8192


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_formulas(dtype):
    assert quantise(E, dtype, 8, E // 32) == Work(3 * E, 2 * E + E + E // 32)
    assert quantise(E, dtype, 4, E // 32) == Work(3 * E, 2 * E + E // 2 + E // 32)
    assert quantise(E, dtype, 4, E // 16, global_scale=True) == Work(3 * E, 2 * E + 4 + E // 2 + E // 16)


def test_the_documents_example():
    """mxfp8_quantize of 2048 x 8192 in 0.016 ms: 3.118 TFLOPs/sec and 3.150 TB/sec, to the digits of the time."""
    work = quantise(E, DType.BFLOAT16, 8, E // 32)
    assert work.tb_per_s(0.016) / work.tflops_per_s(0.016) == pytest.approx(3.150 / 3.118, rel=3e-4)
    assert work.tflops_per_s(0.016) == pytest.approx(3.118, rel=0.03)
