"""FP8 with one scale for a tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from tests.formats.brute_force import all_16_bit, e4m3_magnitudes, nearest_even

FORMATS = [DType.FP8_E4M3, DType.FP8_E5M2]
DTYPES = [torch.bfloat16, torch.float16]

each_format = pytest.mark.parametrize("format", FORMATS)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@each_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_amax(format, dtype):
    """It becomes the largest number and comes back to within fp32's rounding."""
    amax = all_16_bit(dtype)
    amax = amax[(amax > 0) & amax.isfinite() & (amax.double() >= fp8.LARGEST[format] * 2.0**-126)]
    for value in amax[:: 7 if format is DType.FP8_E4M3 else 41]:
        quantised = fp8.encode_tensor(torch.stack((-value, value / 2)), format)
        assert float(quantised.elements[0].float()) == -fp8.LARGEST[format]
        assert float(fp8.decode_tensor(quantised)[0]) == pytest.approx(-float(value), rel=3e-7)


@each_format
def test_scale_and_shapes(format):
    x = normal(3, 4, 5).to(torch.bfloat16).transpose(0, 2)
    quantised = fp8.encode_tensor(x, format)
    assert quantised.scale.shape == ()
    assert quantised.scale.dtype is torch.float32
    assert float(quantised.scale) == float(x.float().abs().max()) / fp8.LARGEST[format] or math.isclose(
        float(quantised.scale), float(x.float().abs().max()) / fp8.LARGEST[format], rel_tol=1e-7
    )
    assert (quantised.elements.shape, quantised.elements.stride()) == (x.shape, x.stride())
    assert quantised.elements.dtype is format.torch


def test_elements_are_the_nearest():
    x = normal(1000)
    quantised = fp8.encode_tensor(x, DType.FP8_E4M3)
    wanted = (x / quantised.scale).double()
    expected = nearest_even(wanted, e4m3_magnitudes()) + 0x80 * torch.signbit(x)
    assert torch.equal(quantised.elements.view(torch.uint8).long(), expected)


@each_format
@pytest.mark.parametrize("shape", [(12, 32), (384,), (3, 4, 32), (2, 192)])
def test_large_tensors_are_quantised_in_parts(monkeypatch, format, shape):
    x = normal(*shape).transpose(0, -1)
    whole = fp8.encode_tensor(x, format)
    monkeypatch.setattr(fp8, "AT_A_TIME", 100)
    in_parts = fp8.encode_tensor(x, format)
    assert torch.equal(whole.scale, in_parts.scale)
    assert torch.equal(whole.elements.float(), in_parts.elements.float())
    assert whole.elements.stride() == in_parts.elements.stride()


@each_format
def test_zeros_have_scale_one(format):
    quantised = fp8.encode_tensor(torch.tensor([0.0, -0.0]), format)
    assert float(quantised.scale) == 1.0
    assert quantised.elements.view(torch.uint8).tolist() == [0, 0x80]
    assert float(fp8.encode_tensor(torch.empty(0, 3), format).scale) == 1.0


@each_format
def test_infinity_saturates_and_nan_stays(format):
    """Neither is seen by the maximum."""
    values = fp8.encode_tensor(torch.tensor([math.inf, -math.inf, math.nan, 2.0, -1.0]), format).elements.float()
    limit = fp8.LARGEST[format]
    assert values[:2].tolist() == [limit, -limit]
    assert math.isnan(values[2])
    assert values[3:].tolist() == [limit, -limit / 2]


@each_format
def test_the_smallest_numbers_do_not_divide_by_zero(format):
    quantised = fp8.encode_tensor(torch.tensor([2.0**-149, -(2.0**-149)]), format)
    assert bool(quantised.elements.float().isfinite().all())
    assert float(quantised.scale) == torch.finfo(torch.float32).tiny


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-6e4, 6e4, width=16), min_size=1, max_size=50), st.sampled_from(FORMATS))
def test_decoding_errs_by_half_a_step_at_most(numbers, format):
    x = torch.tensor(numbers)
    quantised = fp8.encode_tensor(x, format)
    bits, smallest = {DType.FP8_E4M3: (4, -5), DType.FP8_E5M2: (3, -13)}[format]
    scale = float(quantised.scale)
    half_step = 2.0 ** (torch.frexp(x.double().abs() / scale).exponent.clamp(min=smallest).double() - bits - 1)
    error = (fp8.decode_tensor(quantised).double() - x.double()).abs()
    assert bool((error <= half_step * scale * (1 + 1e-6) + 1e-6 * x.abs()).all())
