from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.tolerance import PAYLOAD_ERROR
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS, Payload, global_factor
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.moe_comm.ranks import Rank

HIDDEN = torch.randn(50, 256, generator=torch.Generator().manual_seed(0)).bfloat16()


def error_of(format, hidden, factor):
    decoded = format.decode(format.encode(hidden, factor), factor)
    return float((decoded.double() - hidden.double()).norm() / hidden.double().norm())


@pytest.mark.parametrize("name", WIRE_FORMATS)
def test_a_payload_stands_for_its_hidden_states(name):
    format = WIRE_FORMATS[name]
    factor = global_factor(format, HIDDEN, SingleRank())
    error = error_of(format, HIDDEN, factor)
    assert error <= PAYLOAD_ERROR[name]
    assert error >= PAYLOAD_ERROR[name] / 4  # the limit finds what is a few times as wrong


@pytest.mark.parametrize("name", WIRE_FORMATS)
def test_a_row_has_the_bytes_that_are_counted(name):
    format = WIRE_FORMATS[name]
    payload = format.encode(HIDDEN, 1.0)
    sizes = [part.shape[1] * part.element_size() if part is not None else 0 for part in payload]
    assert sizes == [format.hidden_bytes(256, 2), format.scale_bytes(256)]
    assert 256 % format.columns == 0


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_the_factor_is_that_of_the_largest_magnitude_of_any_rank(name):
    """With the largest factor instead, as upstream takes it, the other rank's payload saturates."""
    format = WIRE_FORMATS[name]
    small = Rank(0, 2, (float(HIDDEN.abs().amax()), 64.0))
    shared = global_factor(format, HIDDEN, small)
    assert shared == format.factor(64.0)
    large = (HIDDEN.float() * 64 / HIDDEN.abs().amax()).bfloat16()
    assert error_of(format, large, shared) <= PAYLOAD_ERROR[name]
    wrong = global_factor(format, HIDDEN, SingleRank())
    assert error_of(format, large, wrong) > PAYLOAD_ERROR[name]


def test_zeros_have_a_factor_too():
    assert global_factor(WIRE_FORMATS["fp8"], torch.zeros(2, 2), SingleRank()) == 1.0


def test_a_payload_without_scales_has_none():
    assert Payload(HIDDEN).scales is None
