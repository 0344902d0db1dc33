from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.checks.exact import Exact
from flashinfer_perf.core.record import Finding
from flashinfer_perf.run.launch import Launch


def judge(actual: torch.Tensor, expected: torch.Tensor) -> Finding:
    return Exact().judge("codes", {"codes": actual}, {"codes": expected})


def truth(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(1, 120, (8, 16), generator=torch.Generator().manual_seed(0)).to(dtype)


FORMATS = [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float32, torch.bfloat16, torch.float8_e4m3fn]
BROKEN = {
    "zeros": lambda x: torch.zeros_like(x.float()).to(x.dtype),
    "off by one": lambda x: (x.float() + 16 * (torch.arange(128).view(8, 16) == 77)).to(x.dtype),
    "scaled": lambda x: (x.float() * 2).clamp(max=120).to(x.dtype),
    "shifted": lambda x: x.view(torch.uint8).roll(x.element_size()).view(x.dtype),
}


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_truth_passes_in_every_format(dtype: torch.dtype):
    finding = judge(truth(dtype), truth(dtype))
    assert (finding.passed, finding.elements, finding.differing, finding.max_abs) == (True, 128, 0, 0.0)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_output_fails_in_every_format(how: str, dtype: torch.dtype):
    assert not judge(BROKEN[how](truth(dtype)), truth(dtype)).passed


@given(position=st.integers(0, 127), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_fails(position: int, bit: int):
    wrong = truth()
    wrong.view(-1)[position] ^= 1 << bit
    finding = judge(wrong, truth())
    assert (finding.passed, finding.differing) == (False, 1)
    assert finding.max_abs == 1 << bit
    assert finding.worst_index == divmod(position, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_nan_never_passes(dtype: torch.dtype):
    nan = torch.tensor([1.0, math.nan]).to(dtype)
    assert not judge(nan, nan).passed
    assert not judge(nan, torch.ones(2).to(dtype)).passed


def test_large_integers_are_compared_as_integers():
    """In fp64, 2^60 and 2^60 + 1 are one number."""
    finding = judge(torch.tensor([2**60 + 1]), torch.tensor([2**60]))
    assert (finding.passed, finding.differing) == (False, 1)


def test_another_shape_fails():
    assert not judge(truth().T, truth()).passed


def test_nothing_is_equal_to_nothing():
    assert judge(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)).passed


def test_backends_must_agree_bit_for_bit():
    check, wrong = Exact(), truth()
    wrong[0, 0] += 1
    for actual, agreed in ((truth(), True), (wrong, False)):
        finding = check.agree("codes", {"codes": actual}, {"codes": truth()})
        assert finding is not None
        assert finding.passed is agreed
    assert check.probe("codes", Launch(lambda: None), {}) is None
