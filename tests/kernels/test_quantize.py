"""The Triton quantisers without a GPU: their arithmetic and addresses in Triton's interpreter, and their arguments.

``tests/gpu/test_quantize_kernels.py`` asks the same of the compiled kernels.
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

from flashinfer_perf.kernels import quantize
from flashinfer_perf.kernels.quantize import quantize_mxfp4, quantize_mxfp8, quantize_nvfp4
from flashinfer_perf.kernels.quantize_tuning import BY_CAPABILITY, DEFAULT, QuantizeTiling, tiling

ROOT = Path(__file__).parents[2]
FORMATS = ("mxfp8", "mxfp4", "nvfp4")


@pytest.fixture(scope="module")
def differing() -> dict[str, list[int]]:
    """Bytes of values and scales that are not those of ``formats``, by case."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_byte_is_that_of_the_format(differing):
    broken = differing.pop("broken")
    assert len(differing) >= 48
    assert {label: found for label, found in differing.items() if found != [0, 0]} == {}
    assert broken == [15, 1], "a block of 32 in which another element is the largest"


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.uint8)


X = torch.zeros(128, 128, dtype=torch.bfloat16)
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_mxfp4(X.float(), empty(128, 64), empty(512), "linear"), "x is torch.float32: give bfloat16"),
        (lambda: quantize_mxfp4(X[:, :80], empty(128, 40), empty(512), "linear"), r"x is \(128, 80\)"),
        (lambda: quantize_mxfp4(X[:, :64], empty(128, 32), empty(256), "linear"), "x must be contiguous"),
        (lambda: quantize_mxfp4(X, empty(128, 32), empty(512), "linear"), r"x_q is \(128, 32\).*give \(128, 64\)"),
        (lambda: quantize_mxfp4(X, empty(128, 64), empty(511), "linear"), r"sf is \(511,\).*give \(512,\)"),
        (lambda: quantize_mxfp4(X[:1], empty(1, 64), empty(4), "128x4"), r"give \(512,\) of bytes"),
        (
            lambda: quantize_mxfp4(X, empty(129, 64)[1:], empty(513)[1:], "linear"),
            "sf must be contiguous and start",
        ),
        (lambda: quantize_mxfp8(X, empty(128, 96), empty(512), "linear"), "x_q has 96 columns: .* at least 128"),
        (
            lambda: quantize_mxfp8(X, empty(128, 144), empty(512), "linear"),
            "x_q has 144 columns: .* multiple of 32",
        ),
        (
            lambda: quantize_nvfp4(X, empty(128, 64), empty(1024), ONE.double(), "linear"),
            "global_scale is .* of torch.float64",
        ),
        (lambda: quantize_nvfp4(X[:48], empty(48, 64), empty(384), ONE, "linear", shuffled=True), "48 rows cannot be"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_many_rows_for_a_grid_are_refused():
    x, tiles = torch.zeros(65536, 32, dtype=torch.bfloat16), QuantizeTiling(rows=1, blocks=4, warps=4, whole=True)
    with pytest.raises(ValueError, match="1 x 65536 rows are too many for tiles of 1: split"):
        quantize_mxfp4(x, empty(65536, 16), empty(65536), "linear", tiles=tiles)


def test_no_rows_are_no_work(monkeypatch):
    monkeypatch.setattr(quantize, "quantize_blocks", None)  # a launch would fail
    quantize_mxfp4(X[:0], empty(0, 64), empty(0), "128x4")
    with pytest.raises(TypeError, match="NoneType"):
        quantize_mxfp4(X, empty(128, 64), empty(128, 4), "128x4")


@pytest.mark.parametrize("name", FORMATS)
def test_every_gpu_has_a_tiling_that_the_kernels_can_take(name):
    for found in [DEFAULT[name], *(table[name] for table in BY_CAPABILITY.values() if name in table)]:
        assert 128 % found.rows == 0
        assert found.blocks % 4 == 0
        assert found.blocks & (found.blocks - 1) == 0
    assert tiling(name, (7, 5)) == DEFAULT[name]
    assert tiling(name, (9, 0)) == BY_CAPABILITY[9, 0].get(name, DEFAULT[name])
