"""The torch backend's parts: operands that are exact in 16 bits, and how they are multiplied."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import e2m1
from flashinfer_perf.routines.moe import eager, hidden
from flashinfer_perf.routines.moe.flags import ACTIVATIONS
from flashinfer_perf.routines.moe.layer import Layer, activate
from flashinfer_perf.routines.moe.weights import FP8_BLOCK, FP8_TENSOR, NVFP4, SIXTEEN_BITS, Drawn
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import case_of

CASE = "--num_tokens 12 --hidden_size 256 --intermediate_size 128 --num_experts 8 --top_k 2"


def factory():
    return TensorFactory("cpu", 7, 1 << 30, SingleRank())


@pytest.mark.parametrize("format", [SIXTEEN_BITS, FP8_TENSOR, FP8_BLOCK, NVFP4])
def test_matrices_lose_nothing_in_16_bits(format):
    made = format.make(factory(), Drawn(Layer("Swiglu", range(2)), (256, 128), DType.BFLOAT16))
    for name in ("w1", "w2"):
        matrix, factor = eager._matrix(made[name], made.get(f"{name}_scale"), made.get(f"{name}_global"), 1)
        assert matrix.dtype is torch.bfloat16
        assert torch.allclose(matrix.float() * factor, format.decoded(made, name, 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [hidden.plain, hidden.fp8_tensor, hidden.fp8_block])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hidden_states_lose_nothing_in_16_bits(make, dtype):
    case = case_of("trtllm_fp8_block_scale_moe", f"{CASE} --input_dtype {dtype}")
    tensors = make(case.flags, factory())
    rows, factor = eager._operand(tensors["x"], tensors.get("x_scale"), DType(dtype).torch)
    assert torch.allclose(rows.float() * factor, hidden.decoded(tensors), rtol=1e-6, atol=0)


def test_values_of_nvfp4():
    assert torch.equal(torch.tensor(eager.NVFP4_VALUES), e2m1.decode(torch.arange(16)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_references(name):
    values = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(eager._activated(name, values), activate(name, values), atol=1e-6)


def test_pairs_are_sorted_by_the_experts_that_are_here():
    experts = torch.tensor([[4, 1], [2, 3], [3, 9], [0, 3]])
    order, counts = eager.sorted_by_expert(experts, range(2, 5))
    assert counts == [1, 3, 1]
    assert order.tolist() == [2, 3, 4, 7, 0]
    assert eager.sorted_by_expert(experts, range(5, 9))[0].tolist() == []
