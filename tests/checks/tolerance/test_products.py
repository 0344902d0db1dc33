from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from tests.checks.tolerance.judged import passes


def product_check(k: int, **changes):
    given = {"operand_bits": 8, "rms": 1.0, "outputs": 4096, **changes}
    return tolerance.for_product(k, DType.BFLOAT16, **given)


@pytest.mark.parametrize("k", [16, 128, 1024, 7168, 16384])
@pytest.mark.parametrize(("bits", "promoted"), [(8, 0), (8, 128), (16, 0)])
def test_a_rounded_product_passes_and_one_that_is_three_percent_off_does_not(k, bits, promoted):
    truth = torch.randn(64, 64, generator=torch.Generator().manual_seed(k)) * math.sqrt(k)
    check = product_check(k, operand_bits=bits, promoted_every=promoted)
    assert passes(check, truth.bfloat16(), truth)
    for factor in (0.97, 1.03, 0.5, 2.0, -1.0):
        assert not passes(check, (truth * factor).bfloat16(), truth)


def test_one_element_that_is_not_a_number_fails():
    truth = torch.randn(64, 64)
    out = truth.bfloat16()
    out[3, 5] = float("nan")
    assert not passes(product_check(128), out, truth)


def test_promotion_to_fp32_leaves_less_to_lose():
    plain, promoted = product_check(16384), product_check(16384, promoted_every=128)
    assert promoted.atol < plain.atol / 8
    assert promoted.max_relative_l2 < plain.max_relative_l2
    assert product_check(128).atol == product_check(128, promoted_every=128).atol


def test_operands_of_16_bits_leave_less_to_lose_than_fp8():
    assert product_check(1024, operand_bits=16).atol < product_check(1024).atol / 100


def test_what_a_tensor_core_cuts_off_is_within_the_tolerance():
    """Each addend is cut off at 2^-13 of the sum so far, as Hopper's FP8 units do at worst."""
    k, generator = 4096, torch.Generator().manual_seed(0)
    a, b = torch.randn(16, k, generator=generator), torch.randn(k, 16, generator=generator)
    total = torch.zeros(16, 16, dtype=torch.float64)
    for i in range(0, k, 32):
        added = total + (a[:, i : i + 32].double() @ b[i : i + 32].double())
        unit = torch.exp2(torch.floor(torch.log2(added.abs())) - 13)
        total = torch.trunc(added / unit) * unit
    truth = a @ b
    assert passes(product_check(k, outputs=256), total.bfloat16(), truth)
    assert not torch.equal(total.bfloat16(), truth.bfloat16())


def test_the_norm_of_few_outputs_is_not_passes():
    assert product_check(128, outputs=63).max_relative_l2 == math.inf
    assert product_check(128, outputs=64).max_relative_l2 < 0.01
