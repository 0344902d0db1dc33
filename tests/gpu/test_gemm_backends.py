"""Matrix products on a GPU: every backend that runs there, tuned or not, and that operands are made quickly."""

from __future__ import annotations

import time

import pytest
import torch

from flashinfer_perf.device.machine import find_machine, free_bytes
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.gpu.harness import assert_all_right, case_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FP4 = "--use_nvfp4 --use_128x4_sf_layout"
CASES = [
    *(
        ("bmm_fp8", f"--batch_size 3 {sizes} {formats}")
        for sizes in ("--m 1 --n 1024 --k 7168", "--m 300 --n 512 --k 1024")
        for formats in ("", "--input_dtype fp8_e5m2", "--mat2_dtype fp8_e5m2 --out_dtype float16")
    ),
    ("bmm_fp8", "--m 16 --n 64 --k 128 --input_dtype fp8_e5m2 --mat2_dtype fp8_e5m2"),  # what cuBLAS lacks
    ("mm_fp8", "--m 8 --n 2560 --k 4096"),
    ("mm_fp8", "--m 300 --n 512 --k 1024 --mat2_dtype fp8_e5m2"),
    *(
        (name, f"--m {m} --n 1024 --k {k} --scale_major_mode {mode} --out_dtype {out} {groups}")
        for name, groups in (("gemm_fp8_nt_groupwise", ""), ("group_gemm_fp8_nt_groupwise", "--group_size 3"))
        for m, k in ((4, 128), (16, 7168), (516, 640))
        for mode, out in (("MN", "bfloat16"), ("K", "float16"))
    ),
    *(("mm_bf16", f"--m {m} --n 1024 --k 4096 {more}") for m in (1, 300) for more in ("", "--bias", "--enable_pdl")),
    ("mm_bf16", "--m 300 --n 1024 --k 4096 --out_dtype float32"),
    *(
        ("bmm_bf16", f"--batch_size 3 --m {m} --n 512 --k 1024 --out_dtype {out}")
        for m, out in ((1, "bfloat16"), (300, "float32"))
    ),
    *(("mm_fp4", f"--m 300 --n 512 --k 1024 {flags}") for flags in ("", "--use_128x4_sf_layout", FP4, "--use_nvfp4")),
    ("mm_fp4", f"--m 4 --n 512 --k 1024 {FP4}"),
    *(("mm_mxfp8", f"--m {m} --n 512 --k 1024") for m in (4, 300)),
    ("bmm_mxfp8", "--batch_size 3 --m 128 --n 256 --k 1024"),
    ("bmm_mxfp8", "--m 5 --n 256 --k 1024"),
]


@pytest.mark.parametrize(("name", "flags"), CASES)
@pytest.mark.parametrize("clock", ["", "--use_cuda_events", "--use_cuda_events --no_cuda_graph"])
def test_every_backend_that_runs_here_is_right(name, flags, clock):
    """The first call's output and the last timed one's, also on rotated copies of the operands."""
    assert_all_right(name, f"{flags} {clock}")


FIRST_OF_EACH = {name: flags for name, flags in reversed(CASES) if "groupwise" not in name}


@pytest.mark.parametrize(("name", "flags"), FIRST_OF_EACH.items())
def test_every_tuned_backend_is_right(name, flags):
    """One case of a routine: trying every tactic takes seconds."""
    records = assert_all_right(name, f"{flags} --autotune")
    assert all("tuning_ms" in record.facts for record in records if record.label.endswith("_autotune"))


def test_every_routine_of_the_family_is_tried():
    assert {name for name, _ in CASES} == {r.name for r in all_routines().values() if r.family == "gemm"}


@pytest.mark.parametrize(
    ("name", "flags"),
    [("gemm_fp8_nt_groupwise", ""), ("mm_fp4", FP4), ("mm_fp4", ""), ("mm_mxfp8", ""), ("mm_fp8", "")],
)
def test_large_operands_are_made_in_a_second(name, flags):
    case, machine = case_of(name, f"--m 8192 --n 8192 --k 16384 {flags}"), find_machine("cuda")
    for _ in range(2):  # the first time loads kernels
        began = time.perf_counter()
        case.routine.make(case.flags, TensorFactory(machine.device, 42, free_bytes(machine), SingleRank()))
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    assert took < 1
