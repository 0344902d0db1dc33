"""E2M1, exhaustively."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import e2m1
from tests.formats.brute_force import all_16_bit, nearest_even

MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def code_of(value: float) -> int:
    return int(e2m1.encode(torch.tensor([value]))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_16_bit_values_go_to_the_nearest(dtype):
    values = all_16_bit(dtype).float()
    values = values[~values.isnan()]
    expected = nearest_even(values, MAGNITUDES) + 8 * torch.signbit(values)
    assert torch.equal(e2m1.encode(values), expected.to(torch.uint8))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from(e2m1.TIES), min_size=1))
def test_all_fp32_values_go_to_the_nearest(numbers):
    values = torch.tensor(numbers, dtype=torch.float32)
    expected = nearest_even(values, MAGNITUDES) + 8 * torch.signbit(values)
    assert torch.equal(e2m1.encode(values), expected.to(torch.uint8))


@pytest.mark.parametrize(
    ("inside", "outside", "value"),
    [
        ((0.0, 0.25), (), 0.0),
        ((), (0.25, 0.75), 0.5),
        ((0.75, 1.25), (), 1.0),
        ((), (1.25, 1.75), 1.5),
        ((1.75, 2.5), (), 2.0),
        ((), (2.5, 3.5), 3.0),
        ((3.5, 5.0), (), 4.0),
        ((), (5.0,), 6.0),
    ],
)
def test_measured_thresholds(inside, outside, value):
    """As measured on hardware: closed intervals belong to even codes, open ones to odd ones."""
    code = e2m1.MAGNITUDES.index(value)
    for sign, offset in ((1, 0), (-1, 8)):
        for edge in inside:
            assert code_of(sign * edge) == code + offset
        for edge in outside:
            assert code_of(sign * edge) != code + offset
            inward = value - edge
            assert code_of(sign * float(torch.tensor(edge).nextafter(torch.tensor(edge + inward)))) == code + offset


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.0, 0), (-0.0, 8), (-0.1, 8), (1e-45, 0), (-1e-45, 8), (6.5, 7), (1e30, 7), (-1e30, 15),
        (math.inf, 7), (-math.inf, 15), (math.nan, 7), (-math.nan, 7),
    ],
)  # fmt: skip
def test_special_values(value, code):
    assert code_of(value) == code


def test_codes_and_values():
    values = e2m1.decode(torch.arange(16))
    assert torch.equal(values[:8], MAGNITUDES)
    assert torch.equal(values[8:], -MAGNITUDES)
    assert bool(torch.signbit(values[8:]).all())
    assert torch.equal(e2m1.encode(values), torch.arange(16).to(torch.uint8))


def test_packing_puts_the_even_element_low():
    """(1.0, 6.0) -> 0x72, as measured."""
    codes = e2m1.encode(torch.tensor([[1.0, 6.0], [-0.5, 0.0]]))
    assert e2m1.pack(codes).tolist() == [[0x72], [0x09]]


def test_unpacking_undoes_packing_for_every_byte():
    packed = torch.arange(256).to(torch.uint8).view(4, 64)
    codes = e2m1.unpack(packed)
    assert codes.shape == (4, 128)
    assert int(codes.max()) == 15
    assert torch.equal(e2m1.pack(codes), packed)
    assert e2m1.pack(codes).dtype is torch.uint8
