from __future__ import annotations

from flashinfer_perf.timing.bias import clock_bias
from tests.fakes import CPU


def test_a_cpus_clock_is_not_compared_with_kernels_of_a_gpu():
    assert clock_bias(CPU, True) == {}
