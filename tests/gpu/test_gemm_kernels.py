"""The Triton FP8 products on a GPU, beside the product of the decoded operands in fp32."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: torch for CUDA brings it")

from flashinfer_perf.kernels.gemm_fp8_groupwise import FP8_PRODUCTS
from flashinfer_perf.kernels.gemm_fp8_tuning import GemmTiling
from tests.kernels.multiplied import Product, relative_error

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_PRODUCTS
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU of compute capability 8.9 or later"),
]
TENSOR_CORES = 1e-3
"""Hopper's sum 128 products of FP8 with some 14 bits: 2^-14, and room for how the errors of 128 add up."""
SHAPES = [(1, 128, 128), (16, 1024, 7168), (130, 384, 256), (1000, 1152, 1024), (2048, 4096, 2048)]
TILINGS = [
    None,
    GemmTiling(64, 64, 4, 4, programs=4),
    GemmTiling(128, 128, 8, 4),
    GemmTiling(128, 128, 8, 4, overlap=True),
    GemmTiling(128, 128, 4, 3, specialize=True),
]


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("mode", ["K", "MN"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tiles", TILINGS)
def test_products(mode, shape, tiles):
    rows, n, k = shape
    assert relative_error(Product((0, rows), n, k, mode, tiles), "cuda") < TENSOR_CORES


@pytest.mark.parametrize("mode", ["K", "MN"])
@pytest.mark.parametrize("offsets", [(0, 16, 32), (0, 70, 140, 210), (0, 5, 5, 300, 301), tuple(range(0, 33 * 64, 64))])
@pytest.mark.parametrize("tiles", TILINGS)
def test_products_of_groups(mode, offsets, tiles):
    assert relative_error(Product(offsets, 384, 512, mode, tiles), "cuda") < TENSOR_CORES


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_narrow_outputs(dtype, rounding):
    assert relative_error(Product((0, 300), 256, 512, "MN", dtype=dtype), "cuda") < TENSOR_CORES + rounding


def test_a_wrong_scale_is_noticed():
    assert relative_error(Product((0, 70), 128, 128, "K", spoilt=True), "cuda") > TENSOR_CORES
