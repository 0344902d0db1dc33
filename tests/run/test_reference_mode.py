from __future__ import annotations

import pytest
import torch

from flashinfer_perf.run.reference_mode import full_precision


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_inside_products_are_full_fp32_and_gradients_off(precision: str):
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.is_grad_enabled()


def test_the_state_is_as_before_afterwards(precision: str):
    with full_precision():
        pass
    assert torch.get_float32_matmul_precision() == precision
    assert torch.is_grad_enabled()


def test_the_state_is_as_before_after_an_exception(precision: str):
    with pytest.raises(ValueError, match="x"), full_precision():
        raise ValueError("x")
    assert torch.get_float32_matmul_precision() == precision
    assert torch.is_grad_enabled()
