"""The Triton FP8 products on a GPU, beside the product of the decoded operands in fp32."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: torch for CUDA brings it")

from flashinfer_perf.kernels.gemm_fp8_groupwise import FP8_PRODUCTS
from flashinfer_perf.kernels.gemm_fp8_tuning import FEW, MANY
from tests.kernels.multiplied import Product, relative_error

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_PRODUCTS
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU of compute capability 8.9 or later"),
]
TENSOR_CORES = 1e-3
"""Hopper's sum 128 products of FP8 with some 14 bits: 2^-14, and room for how the errors of 128 add up."""
SHAPES = [(1, 128, 128), (16, 1024, 7168), (130, 384, 256), (1000, 1152, 1024), (2048, 4096, 2048)]
GROUPS = [(0, 16, 32), (0, 70, 140, 210), (0, 5, 5, 300, 301), (0, 200, 600, 601), tuple(range(0, 33 * 64, 64))]
TILINGS = [None, FEW, MANY, MANY._replace(rows=16)]
DTYPES = {torch.bfloat16: 2**-9, torch.float16: 2**-12, torch.float32: 0.0}
"""Of the output, and its roundings."""


@pytest.fixture(autouse=True)
def exact_fp32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["K", "MN"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tiles", TILINGS)
def test_products(mode, shape, tiles, dtype):
    rows, n, k = shape
    assert relative_error(Product((0, rows), n, k, mode, tiles, dtype), "cuda") < TENSOR_CORES + DTYPES[dtype]


@pytest.mark.parametrize("mode", ["K", "MN"])
@pytest.mark.parametrize(
    "offsets", [(0, 16, 32), (0, 70, 140, 210), (0, 5, 5, 300, 301), (0, 200, 600, 601), tuple(range(0, 33 * 64, 64))]
)
@pytest.mark.parametrize("tiles", TILINGS)
def test_products_of_groups(mode, offsets, tiles):
    product = Product(offsets, 384, 512, mode, tiles, torch.bfloat16)
    assert relative_error(product, "cuda") < TENSOR_CORES + DTYPES[torch.bfloat16]


@pytest.mark.parametrize("rows", [70, 64])
def test_a_wrong_scale_is_noticed(rows):
    product = Product((0, rows), 128, 128, "K", dtype=torch.bfloat16, spoilt=True)
    assert relative_error(product, "cuda") > 3 * (TENSOR_CORES + DTYPES[torch.bfloat16])
