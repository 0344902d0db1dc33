"""E8M0, the scale of the MX formats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import e8m0
from tests.formats.brute_force import all_16_bit


def byte_of(value: float) -> int:
    return int(e8m0.encode_up(torch.tensor([value], dtype=torch.float32))[0])


def byte_by_rule(value: float) -> int:
    """The smallest e with 2^e >= value, plus 127, at most 0xFE; 0 for what kernels flush to zero."""
    if value < 2.0**-126:
        return 0
    fraction, exponent = math.frexp(value)
    return min(exponent - (fraction == 0.5) + 127, 0xFE)


def test_every_power_of_two_and_its_neighbours():
    for exponent in range(-126, 128):
        power = 2.0**exponent
        above = float(torch.tensor(power).nextafter(torch.tensor(math.inf)))
        below = float(torch.tensor(power).nextafter(torch.tensor(0.0)))
        assert [byte_of(value) for value in (below, power, above)] == [byte_by_rule(v) for v in (below, power, above)]
        assert byte_of(power) == exponent + 127


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_positive_16_bit_values(dtype):
    values = all_16_bit(dtype).float()
    values = values[(values >= 0) & values.isfinite()]
    expected = torch.tensor([byte_by_rule(value) for value in values.tolist()], dtype=torch.uint8)
    assert torch.equal(e8m0.encode_up(values), expected)


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=0, allow_infinity=False, width=32))
def test_the_power_is_the_smallest_that_is_not_below(value):
    byte = byte_of(value)
    assert byte == byte_by_rule(value)
    if 1 < byte < 0xFE:
        assert 2.0 ** (byte - 128) < value <= 2.0 ** (byte - 127)


@pytest.mark.parametrize(
    ("value", "byte"),
    [
        (0.0, 0x00),
        (2.0**-149, 0x00),  # subnormal: the conversion alone would give it 0x00 too, up to 2^-127,
        (2.0**-127 * 1.5, 0x00),  # and 0x01 above; but the kernels' arithmetic has flushed it to zero before
        (2.0**-126, 0x01),
        (1.0, 0x7F),
        (1.0000001, 0x80),
        (2.0**126, 0xFD),
        (2.0**126 * 1.1, 0xFE),
        (2.0**127, 0xFE),
        (3.4028234663852886e38, 0xFE),
        (math.inf, 0xFE),
        (math.nan, 0xFF),
    ],
)
def test_edges(value, byte):
    assert byte_of(value) == byte


def test_decode_every_byte():
    values = e8m0.decode(torch.arange(256).to(torch.uint8))
    assert values.dtype is torch.float32
    assert values[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert math.isnan(values[255])


def test_encoding_undoes_decoding():
    bytes_ = torch.arange(256).to(torch.uint8)
    assert torch.equal(e8m0.encode_up(e8m0.decode(bytes_)), bytes_)


def test_reciprocal_every_byte():
    """Exact for 1 … 253; where the power or its reciprocal is subnormal the kernels have zero."""
    factors = e8m0.reciprocal(torch.arange(256).to(torch.uint8)).tolist()
    assert factors[1:254] == [2.0 ** (127 - byte) for byte in range(1, 254)]
    assert [factors[byte] for byte in (0, 254, 255)] == [0, 0, 0]


def test_shapes_are_kept():
    values = torch.rand(2, 3, 4)
    assert e8m0.decode(e8m0.encode_up(values)).shape == e8m0.reciprocal(e8m0.encode_up(values)).shape == (2, 3, 4)
