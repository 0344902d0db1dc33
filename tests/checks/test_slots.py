"""A paged cache: every written slot is right, every other is as it was."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.slots import Fp8Slots
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats.fp8 import encode

LAYOUTS = {1: (3, 4, 2, 16), 2: (3, 2, 4, 16)}
"""Shapes by the dimension of the slots."""
WRITTEN = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)


def cache(slot_dim: int) -> torch.Tensor:
    drawn = torch.randn(LAYOUTS[slot_dim], generator=torch.Generator().manual_seed(1))
    return encode(drawn, DType.FP8_E4M3)


def slot(codes: torch.Tensor, slot_dim: int, page: int, number: int) -> torch.Tensor:
    return codes.view(torch.uint8)[page].select(slot_dim - 1, number)


def judge(actual: torch.Tensor, slot_dim: int):
    return Fp8Slots(WRITTEN, slot_dim).judge("cache", {"cache": actual}, {"cache": cache(slot_dim)})


@pytest.mark.parametrize("slot_dim", LAYOUTS)
def test_the_truth_passes(slot_dim: int):
    finding = judge(cache(slot_dim), slot_dim)
    assert (finding.passed, finding.elements, finding.differing) == (True, 5 * 32, 0)
    assert "in 5 slots; others untouched" in finding.detail


@pytest.mark.parametrize("slot_dim", LAYOUTS)
@pytest.mark.parametrize(("page", "number"), [(1, 0), (1, 3), (2, 1)])
def test_one_bit_of_another_slot_is_too_much(slot_dim: int, page: int, number: int):
    actual = cache(slot_dim)
    slot(actual, slot_dim, page, number)[1, 7] ^= 1
    finding = judge(actual, slot_dim)
    assert not finding.passed
    assert finding.detail == f"1 slots changed that were not to be written, first slot {number} of page {page}"


@pytest.mark.parametrize("slot_dim", LAYOUTS)
@pytest.mark.parametrize(("steps", "passes"), [(1, True), (2, False)])
def test_a_written_slot_may_be_one_step_off_in_an_element(slot_dim: int, steps: int, passes: bool):
    actual = cache(slot_dim)
    slot(actual, slot_dim, 2, 0)[0, 3] += steps
    finding = judge(actual, slot_dim)
    assert (finding.passed, finding.differing) == (passes, 1)


@pytest.mark.parametrize("slot_dim", LAYOUTS)
def test_the_fraction_is_of_what_was_written(slot_dim: int):
    """Two steps of one in 160 elements are 1.25 %; in the whole cache they would be half of that."""
    actual = cache(slot_dim)
    slot(actual, slot_dim, 0, 1)[0, 3:5] += 1
    assert not judge(actual, slot_dim).passed


@pytest.mark.parametrize("slot_dim", LAYOUTS)
def test_nan_and_zeros_do_not_pass(slot_dim: int):
    actual = cache(slot_dim)
    slot(actual, slot_dim, 0, 0)[0, 0] = 0x7F
    assert not judge(actual, slot_dim).passed
    assert not judge(torch.zeros_like(actual), slot_dim).passed
    assert not judge(actual[:2], slot_dim).passed


def test_another_backends_cache_is_compared_likewise():
    check = Fp8Slots(WRITTEN, 1)
    other = cache(1)
    slot(other, 1, 1, 0)[0, 0] ^= 1
    finding = check.agree("cache", {"cache": other}, {"cache": cache(1)})
    assert finding is not None
    assert not finding.passed
    assert check.probe("cache", None, {}) is None  # type: ignore[arg-type]
