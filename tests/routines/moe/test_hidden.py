"""Hidden states: exact in what they are given in, with scales that tell one token from the next."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from flashinfer_perf.routines.moe import hidden
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import case_of

CASE = "--num_tokens 40 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2"
MAKERS = {"plain": hidden.plain, "fp8": hidden.fp8_tensor, "fp8 blocks": hidden.fp8_block, "fp4": hidden.fp4}


def made(kind, flags=CASE):
    case = case_of("trtllm_fp8_block_scale_moe", flags)
    return MAKERS[kind](case.flags, TensorFactory("cpu", 42, 1 << 30, SingleRank()))


@pytest.mark.parametrize("kind", MAKERS)
def test_values_are_about_standard_normal(kind):
    values = hidden.decoded(made(kind))
    assert (values.shape, values.dtype) == ((40, 256), torch.float32)
    size = float(values.square().mean().sqrt())
    assert 0.7 < size < 1.05  # every second block of FP8 is halved


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fp4_is_in_16_bits_what_it_is_packed(dtype):
    tensors = made("fp4", f"{CASE} --input_dtype {dtype}")
    assert tensors["x"].dtype is DType(dtype).torch
    assert (tensors["x_packed"].shape, tensors["x_scale"].shape) == ((40, 128), (40, 16))


def test_scales_of_fp8_blocks_differ_from_token_to_token():
    scales = made("fp8 blocks")["x_scale"]
    assert scales.shape == (40, 2)
    assert 0.2 < float((scales != scales.roll(1, 0)).float().mean()) < 0.9


def test_one_scale_of_fp8():
    tensors = made("fp8")
    assert tensors["x_scale"].shape == (1,)
    assert float(tensors["x"].float().abs().max()) == fp8.LARGEST[DType.FP8_E4M3]


def test_headroom_between_the_products():
    """64 is e4m3's and NVFP4's largest number, and no product of two normal numbers comes near it."""
    assert (hidden.BETWEEN_FP8, hidden.BETWEEN_FP4) == (7.0, 42.0)
    values = torch.randn(2, 10_000_000, generator=torch.Generator().manual_seed(1))
    assert float(values.prod(0).abs().max()) < 64 / 1.5
