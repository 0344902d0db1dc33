"""The truth about quantisation and ``formats``: written independently, they must agree bit for bit."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.formats import mxfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.routines.quantization import reference
from flashinfer_perf.routines.quantization.mxfp4_quantize import quantise

DTYPES = [torch.bfloat16, torch.float16]


def assert_agree(x):
    truth = reference.mxfp4(x)
    packed, scales = quantise(x)
    assert set(truth) == {"packed", "scales"}
    assert torch.equal(truth["packed"], packed)
    assert torch.equal(truth["scales"], scales)
    assert (truth["packed"].dtype, truth["scales"].dtype) == (torch.uint8, torch.uint8)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-3, 1.0, 1e3, 6e4, 1e30, 3e38])
def test_random_data_of_all_sizes(dtype, size):
    x = (normal(64, 256).double().clamp(-1, 1) * size).to(dtype)
    assert_agree(x.where(x.isfinite(), torch.full_like(x, 1.0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_widely_different_sizes(dtype):
    """One element outshines the others, which become small codes, ties and signed zeros."""
    assert_agree((normal(64, 256).double() * 2.0 ** normal(64, 256).mul(6).round().double()).to(dtype).clamp(-6e4, 6e4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_finite_value_in_a_block_with_every_largest(dtype):
    """All finite 16-bit values, in blocks of neighbours and in blocks of values far apart."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values.where(values.isfinite(), torch.zeros_like(values))
    assert_agree(values.view(-1, 32))
    assert_agree(values.view(32, -1).T.contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties(dtype):
    """Multiples of a quarter up to 6: a scale of 1, and every tie of E2M1 among them, with both signs."""
    quarters = torch.arange(0, 6.25, 0.25)
    x = torch.cat((quarters, torch.full((7,), 6.0))).to(dtype)
    assert_agree(torch.stack((x, -x)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_negative_zeros(dtype):
    x = torch.zeros(4, 64, dtype=dtype)
    x[1:3] = -0.0
    assert_agree(x)
    assert reference.mxfp4(x)["packed"][1, 0] == 0x88
    assert not reference.mxfp4(x)["scales"].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_smallest_values(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = (normal(32, 64) * 4).double().mul(tiny).to(dtype)
    assert_agree(x)


@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (130, 32), (257, 160)])
def test_shapes(shape):
    assert_agree(normal(*shape).to(torch.bfloat16))


def test_large_inputs_are_taken_in_parts(monkeypatch):
    x = normal(64, 96).to(torch.bfloat16)
    whole = reference.mxfp4(x)
    monkeypatch.setattr(reference, "ROWS_AT_A_TIME", 320)
    parts = reference.mxfp4(x)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_decoded_values_are_near():
    """Half the largest step, 2, of a block at most."""
    x = normal(128, 128).to(torch.bfloat16)
    truth = reference.mxfp4(x)
    scales = mxfp4.encode(x).scales
    assert torch.equal(truth["scales"], swizzle_128x4(scales))
    error = (mxfp4.decode(mxfp4.Mxfp4(truth["packed"], scales)) - x.float()).abs().unflatten(-1, (-1, 32))
    assert bool((error <= 2.0 ** (scales.double() - 127)[..., None]).all())
