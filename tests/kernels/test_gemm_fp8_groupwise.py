"""The FP8 products without a GPU: their sums and addresses in Triton's interpreter, and their arguments.

``tests/gpu/test_gemm_kernels.py`` asks the same of the compiled kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.kernels import gemm_fp8_groupwise as module
from flashinfer_perf.kernels.gemm_fp8_groupwise import gemm_fp8_groupwise
from flashinfer_perf.kernels.gemm_fp8_tuning import FEW, FEW_ROWS, MANY, tiling

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-6
"""Of fp32 sums of 256 products: 2^-24 * sqrt(256), and what PyTorch's own sums round."""


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Relative errors by case."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted_products"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_way_to_cut_the_work_gives_the_product(errors):
    assert errors.pop("broken") > 1e-3
    assert len(errors) == 18
    assert {label: error for label, error in errors.items() if not error < ROUNDING} == {}


def fp8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


A, B, OUT = fp8(8, 256), fp8(1, 128, 256), torch.empty(8, 128)
A_SCALE, B_SCALE, M_INDPTR = torch.ones(8, 2), torch.ones(1, 1, 2), torch.tensor([0, 8], dtype=torch.int32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": A.float()}, "a is torch.float32: give float8_e4m3fn"),
        ({"b": fp8(1, 128, 128)}, "k must agree"),
        ({"b": fp8(1, 64, 256)}, "n and k are multiples of 128"),
        ({"b": fp8(128, 256)}, "k must agree"),
        ({"out": OUT[:7]}, r"out is \(7, 128\).*give \(8, 128\)"),
        ({"scale_major_mode": "MN"}, r"a_scale is \(8, 2\).*give \(2, 8\)"),
        ({"b_scale": B_SCALE.double()}, "b_scale is .* of torch.float64"),
        ({"scale_major_mode": "N"}, "scale_major_mode is 'N': give 'K' or 'MN'"),
        ({"b": B.mT.contiguous().mT}, "b must be contiguous"),
        ({"m_indptr": torch.zeros(2)}, r"m_indptr is \(2,\) of torch.float32: give \(2,\) of int32"),
        ({"m_indptr": torch.zeros(3, dtype=torch.int32)}, r"m_indptr is \(3,\) of torch.int32: give \(2,\)"),
    ],
)
def test_what_cannot_be_done_is_refused(changed, message):
    call = {"a": A, "b": B, "a_scale": A_SCALE, "b_scale": B_SCALE, "m_indptr": M_INDPTR, "out": OUT}
    with pytest.raises(ValueError, match=message):
        gemm_fp8_groupwise(**call | {"scale_major_mode": "K"} | changed)


def test_a_gpu_without_fp8_products_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(Unsupported, match=r"compute capability 8\.6 multiplies no FP8; needs 8\.9"):
        module._capability(torch.device("cuda"))


def test_no_rows_are_no_work(monkeypatch):
    launched = []
    monkeypatch.setattr(module, "_anywhere", lambda call, tiles, interpreted: launched.append(len(call.a)))
    gemm_fp8_groupwise(A[:0], B, A_SCALE[:0], B_SCALE, torch.zeros_like(M_INDPTR), OUT[:0], "K")
    gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE, M_INDPTR, OUT, "K")
    assert launched == [len(A)]


def test_few_rows_have_a_tiling_of_their_own():
    assert (tiling(FEW_ROWS), tiling(FEW_ROWS + 1)) == (FEW, MANY)


@pytest.mark.parametrize(
    ("rows", "dtype", "own"), [(65, "bfloat16", True), (64, "bfloat16", False), (65, "float32", False)]
)
def test_hopper_has_a_kernel_of_its_own_for_many_rows(monkeypatch, rows, dtype, own):
    called = []
    monkeypatch.setattr(module, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "_on_hopper", lambda call: called.append(True))
    monkeypatch.setattr(module, "_anywhere", lambda call, tiles, interpreted: called.append(False))
    m_indptr, out = torch.tensor([0, rows], dtype=torch.int32), torch.empty(rows, 128, dtype=getattr(torch, dtype))
    gemm_fp8_groupwise(fp8(rows, 256), B, torch.ones(rows, 2), B_SCALE, m_indptr, out, "K")
    assert called == [own]
