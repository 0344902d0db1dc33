"""What our Triton products are called with; ``tests/kernels`` and ``tests/gpu`` ask what they do."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels import gemm_fp8_groupwise as module
from flashinfer_perf.routines.gemm import groupwise
from tests.routines.harness import assert_passes, launch_of, run, unconditional

SIZES = "--m 12 --n 256 --k 384"
CASES = [
    (name, f"{SIZES} {groups} --scale_major_mode {mode} --out_dtype {dtype}")
    for name, groups in (("gemm_fp8_nt_groupwise", ""), ("group_gemm_fp8_nt_groupwise", "--group_size 3"))
    for mode, dtype in (("MN", "bfloat16"), ("K", "float16"))
]


def product(a, b, a_scale, b_scale, m_indptr, out, scale_major_mode):
    """By the kernel's documentation."""
    a_rows, b_rows = (groupwise.by_row(scale, scale_major_mode) for scale in (a_scale, b_scale))
    bounds = m_indptr.tolist()
    for group, (start, end) in enumerate(itertools.pairwise(bounds)):
        groupwise.dequantised(a[start:end], b[group], a_rows[start:end], b_rows[group], out[start:end], 128)


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_the_kernel_gets_what_its_documentation_asks_for(monkeypatch, name, flags):
    monkeypatch.setattr(module, "gemm_fp8_groupwise", product)
    with unconditional(name, "triton"):
        assert_passes(run(name, flags, "triton"))


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_operands_are_accepted_by_the_kernel_itself(monkeypatch, name, flags):
    launched = []
    monkeypatch.setattr(module, "_anywhere", lambda call, tiles, interpreted: launched.append(call))
    launch, problem = launch_of(name, "triton", flags)
    launch()
    assert len(launched) == 1
    assert launched[0].a is problem["a"]
    assert launch.arguments()["m_indptr"].dtype is torch.int32
