"""Requirements of FlashInfer's backends are those that the installed library declares."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines import all_routines

gemm = pytest.importorskip("flashinfer").gemm

EVERY = [75, 80, 86, 87, 89, 90, 100, 103, 107, 110, 120, 121]
SAME_NAMES = {
    "bmm_fp8": ("cudnn", "cublas", "cutlass", "cute-dsl"),
    "mm_bf16": ("cudnn", "cublaslt", "cutlass", "tgv", "tinygemm", "cutile", "cute-dsl"),
    "bmm_bf16": ("cudnn", "cutlass", "tgv", "cutile", "cake"),
    "mm_fp8": ("trtllm_low_latency", "cutedsl_low_latency", "cublas", "cudnn", "cutlass"),
    "mm_fp4": ("cudnn", "trtllm", "cutlass", "cute-dsl", "cutedsl_low_latency", "b12x"),
    "mm_mxfp8": ("cutlass", "trtllm", "cute-dsl", "cutedsl_low_latency", "cudnn", "b12x"),
    "bmm_mxfp8": ("cudnn", "cutlass"),
    "gemm_fp8_nt_groupwise": ("cutlass", "trtllm", "cutile"),
}
"""Backends that the library knows by the same name."""
LEFT_OUT = {("mm_fp4", "cake")}
"""It multiplies activations with a global scale for every row, which the routine has not got."""
KNOWN = (
    *("cudnn", "cublas", "cublaslt", "cutlass", "trtllm", "tgv", "tinygemm", "cutile", "cute-dsl", "b12x", "cake"),
    *("cutedsl_low_latency", "trtllm_low_latency"),
)


def capabilities_of(routine: str, backend: str) -> set[int]:
    """Those that the capability's own requirement admits."""
    (requirement,) = (r for r in all_routines()[routine].backends[backend].requires if r.on_capability)
    machines = {cc: Machine("cuda:0", "a GPU", compute_capability=(cc // 10, cc % 10)) for cc in EVERY}
    return {cc for cc, machine in machines.items() if requirement.unmet(machine, None) is None}


@pytest.mark.parametrize(("routine", "backend"), [(r, b) for r, names in SAME_NAMES.items() for b in names])
def test_capabilities_are_the_librarys(routine, backend):
    function = getattr(gemm, routine)
    assert capabilities_of(routine, backend) == {cc for cc in EVERY if function.is_backend_supported(backend, cc)}


@pytest.mark.parametrize("backend", ["cutlass", "cutile"])
def test_capabilities_of_the_grouped_product_are_the_librarys(backend):
    """It has a list for all of them."""
    function = gemm.group_gemm_fp8_nt_groupwise
    supported = {cc for cc in EVERY if function.is_compute_capability_supported(cc)}
    assert capabilities_of("group_gemm_fp8_nt_groupwise", backend) == supported


@pytest.mark.parametrize("routine", SAME_NAMES)
def test_no_backend_of_the_library_is_left_out(routine):
    function = getattr(gemm, routine)
    theirs = {(routine, name) for name in KNOWN if function.has_backend(name)}
    assert theirs - {(routine, name) for name in SAME_NAMES[routine]} == {
        pair for pair in LEFT_OUT if pair[0] == routine
    }


@pytest.mark.parametrize("routine", [name for name in SAME_NAMES if "auto" in all_routines()[name].backends])
def test_auto_runs_where_one_of_them_runs(routine):
    supported = {cc for cc in EVERY if getattr(gemm, routine).is_compute_capability_supported(cc)}
    found = capabilities_of(routine, "auto")
    assert found
    assert found <= supported
