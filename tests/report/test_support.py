"""Which backend runs where, by its requirements; and each difference from the documented matrix."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.requirement import capability, package
from flashinfer_perf.core.routine import Backend
from flashinfer_perf.report.support import CAPABILITIES, differences, runs_on
from flashinfer_perf.routines import all_routines

DIFFERENCES = {
    ("mxfp8_quantize", "cuda", "12.0", True),
    ("gemm_fp8_nt_groupwise", "cutlass", "12.0", True),
    ("group_gemm_fp8_nt_groupwise", "cutlass", "12.0", True),
    ("bmm_fp8", "cutlass", "12.0", True),
    ("mm_fp4", "cutlass", "12.0", True),
    *(("cutlass_fused_moe", "cutlass", capability, True) for capability in ("8.9", "9.0", "12.0")),
    ("mxfp4_quantize", "cuda", "12.0", True),
    ("nvfp4_quantize", "cuda", "12.0", True),
    ("nvfp4_batched_quantize", "cuda", "12.0", True),
    ("rmsnorm_fp4quant", "cute-dsl", "12.0", True),
    ("add_rmsnorm_fp4quant", "cute-dsl", "12.0", True),
    ("BatchDecodeWithPagedKVCacheWrapper", "trtllm-native", "9.0", True),  # XQA
    ("BatchDecodeWithPagedKVCacheWrapper", "trtllm-native", "12.0", True),  # XQA
}
"""Every cell in which the installed library and the documented matrix disagree. The library decides; the documents'
README leaves 12.0 blank for these, though the code that it describes runs them there."""


def backend(*requires: object) -> Backend:
    return Backend("x", print, requires, (), (), None)  # type: ignore[arg-type]


def test_every_difference_from_the_documented_matrix_is_known():
    found = {(cell.routine, cell.backend, cell.capability, cell.runs) for cell in differences(all_routines())}
    assert found == DIFFERENCES


def test_nothing_that_is_documented_is_missing():
    assert all(cell.runs for cell in differences(all_routines()))


def test_packages_are_taken_for_installed():
    assert runs_on(backend(package("no_such_module", extra="x")), "CPU")


@pytest.mark.parametrize("found", [*CAPABILITIES, "CPU"])
def test_a_capability_is_compared_as_numbers(found: str):
    assert runs_on(backend(capability(minimum="9.0")), found) == (found in ("9.0", "10.0", "10.3", "12.0"))
