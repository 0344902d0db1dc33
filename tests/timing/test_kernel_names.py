from __future__ import annotations

import pytest

from flashinfer_perf.timing.kernel_names import readable


def test_a_linkers_name_becomes_one_of_cplusplus():
    assert readable("_ZN10flashinfer4norm7RMSNormILi4EEEvPf") == "void flashinfer::norm::RMSNorm<4>(float*)"


@pytest.mark.parametrize("name", ["", "_attention_kernel", "kernel_cutlass_norm_0", "MEMSET", "_Z", "_ZN3"])
def test_any_other_name_stays(name):
    assert readable(name) == name
