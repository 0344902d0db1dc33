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
from flashinfer_perf.kernels.gemm_fp8_groupwise import gemm_fp8_groupwise, group_gemm_fp8_groupwise
from flashinfer_perf.kernels.gemm_fp8_tuning import BY_CAPABILITY, DEFAULT, FEW_ROWS, GemmTiling, tiling

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


A, B, OUT = fp8(8, 256), fp8(128, 256), torch.empty(8, 128)
A_SCALE, B_SCALE = torch.ones(8, 2), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gemm_fp8_groupwise(A.float(), B, A_SCALE, B_SCALE, OUT, "K"),
            "a is torch.float32: give float8_e4m3fn",
        ),
        (lambda: gemm_fp8_groupwise(A, fp8(128, 128), A_SCALE, B_SCALE, OUT, "K"), "k must agree"),
        (lambda: gemm_fp8_groupwise(A, fp8(64, 256), A_SCALE, B_SCALE, OUT, "K"), "n and k are multiples of 128"),
        (lambda: gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE, OUT[:7], "K"), r"out is \(7, 128\).*give \(8, 128\)"),
        (lambda: gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE, OUT, "MN"), r"a_scale is \(8, 2\).*give \(2, 8\)"),
        (lambda: gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE.double(), OUT, "K"), "b_scale is .* of torch.float64"),
        (lambda: gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE, OUT, "N"), "scale_major_mode is 'N': give 'K' or 'MN'"),
        (lambda: gemm_fp8_groupwise(A, B.T.contiguous().T, A_SCALE, B_SCALE, OUT, "K"), "b must be contiguous"),
        (
            lambda: gemm_fp8_groupwise(A, B, A_SCALE, B_SCALE, OUT, "K", tiles=GemmTiling(64, 256, 8, 3)),
            "tiles have 256 columns: at most 128 with overlap=False",
        ),
        (
            lambda: group_gemm_fp8_groupwise(A, B[None], A_SCALE, B_SCALE[None], torch.zeros(2), OUT, "K"),
            r"m_indptr is \(2,\) of torch.float32: give \(2,\) of int32",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_gpu_without_fp8_products_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(Unsupported, match=r"compute capability 8\.6 multiplies no FP8; needs 8\.9"):
        module._capability(torch.device("cuda"))


def test_no_rows_are_no_work():
    gemm_fp8_groupwise(A[:0], B, A_SCALE[:0], B_SCALE, OUT[:0], "K")


@pytest.mark.parametrize("tiles", [DEFAULT, *(tiles for pair in BY_CAPABILITY.values() for tiles in pair)])
def test_every_gpu_has_a_tiling_that_the_kernel_can_take(tiles):
    assert tiles.rows >= 64
    assert tiles.columns <= (256 if tiles.overlap else 128)
    assert tiles.rows & (tiles.rows - 1) == tiles.columns & (tiles.columns - 1) == 0


def test_few_rows_have_a_tiling_of_their_own():
    few, many = BY_CAPABILITY[9, 0]
    assert tiling((9, 0), FEW_ROWS) == few
    assert tiling((9, 0), FEW_ROWS + 1) == many
    assert tiling((8, 9), 1) == DEFAULT
