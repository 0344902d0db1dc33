"""The tables of block-scaled FP4: numbers, rounding by search, and how bytes are read."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks.block_formats import (
    E2M1,
    E4M3,
    FORMATS,
    MXFP8,
    NVFP4,
    nearest,
)
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import e2m1, mxfp4, nvfp4


def test_the_tables_are_those_of_the_formats():
    codes = torch.arange(127, dtype=torch.uint8)
    assert list(E4M3) == codes.view(torch.float8_e4m3fn).double().tolist()
    assert list(E2M1) == e2m1.decode(torch.arange(8)).tolist()
    assert FORMATS[DType.MXFP4].decode(torch.tensor([0, 127, 254])).tolist() == [2.0**-127, 1.0, 2.0**127]


@pytest.mark.parametrize(
    ("value", "code"),
    [(0, 0), (0.25, 0), (0.26, 1), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6), (5.1, 7), (99, 7)],
)
def test_ties_go_to_the_even_code(value, code):
    assert nearest(torch.tensor([value], dtype=torch.float64), E2M1).tolist() == [code]


@pytest.mark.parametrize(("wanted", "byte"), [(0, 0), (1.0, 127), (1.0000001, 128), (0.5, 126), (2.0**-140, 0)])
def test_e8m0_scales_are_rounded_up(wanted, byte):
    assert FORMATS[DType.MXFP4].encode(torch.tensor([wanted])).tolist() == [byte]


@pytest.mark.parametrize(("wanted", "byte"), [(0, 0), (448, 126), (1e9, 126), (2.0**-10, 0), (1.5 * 2**-9, 2)])
def test_e4m3_scales_are_rounded_to_nearest(wanted, byte):
    assert FORMATS[DType.NVFP4].encode(torch.tensor([wanted])).tolist() == [byte]


@pytest.mark.parametrize("byte", [0x7F, 0x80, 0xFF])
def test_what_is_no_e4m3_scale_is_nan(byte):
    assert FORMATS[DType.NVFP4].decode(torch.tensor([byte])).isnan().all()


def test_bytes_hold_two_elements_the_low_half_first():
    ranks = NVFP4.ranks(torch.tensor([[0x72, 0xF8]], dtype=torch.uint8))
    assert ranks.tolist() == [[2, 7, 0, -7]]
    assert NVFP4.values(ranks).tolist() == [[1.0, 6.0, 0.0, -6.0]]


def test_a_byte_of_an_fp8_element_is_its_own_rank():
    ranks = MXFP8.ranks(torch.tensor([[0x00, 0x80, 0x7E, 0xFE, 0x7F, 0xFF]], dtype=torch.uint8))
    assert ranks.tolist() == [[0, 0, 126, -126, 127, -127]]
    assert MXFP8.values(ranks)[0, :4].tolist() == [0, 0, 448, -448]
    assert bool(MXFP8.values(ranks)[0, 4:].isnan().all()), "what is no number"


def test_ranks_of_quotients():
    values, scale = torch.tensor([[5.0, -2.6, 0.0, 99.0]], dtype=torch.float64), torch.tensor([[2.0]])
    assert NVFP4.nearest(values, scale).tolist() == [[4, -3, 0, 7]]
    assert NVFP4.nearest(values, scale, error=0.001).tolist() == [[5, -3, 0, 7]]
    for nothing in (0.0, math.nan):
        assert NVFP4.nearest(values, torch.tensor([[nothing]])).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(("format", "codec"), [(DType.NVFP4, nvfp4), (DType.MXFP4, mxfp4)])
def test_dequantised_as_the_format_does(format, codec):
    """Every pair of elements under many scales."""
    packed = torch.arange(256, dtype=torch.uint8).repeat(8).reshape(16, 128)
    block = FORMATS[format].block
    scales = torch.arange(100, 100 + 16, dtype=torch.uint8)[:, None].expand(16, 256 // block).contiguous()
    quantised = type(codec.encode(torch.zeros(1, block)))(packed, scales)
    assert torch.equal(FORMATS[format].dequantise(packed, scales), codec.decode(quantised).double())
    assert len(e2m1.MAGNITUDES) == len(E2M1)
