"""The mathematics, against sums that are done by hand in fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from flashinfer_perf.checks.block_formats import MXFP4, MXFP8, NVFP4
from flashinfer_perf.routines.quantization import reference

FORMATS = {"mxfp8": (MXFP8, 448), "mxfp4": (MXFP4, 6), "nvfp4": (NVFP4, 6)}

each_format = pytest.mark.parametrize(("format", "largest"), FORMATS.values(), ids=FORMATS)


def data(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@each_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("global_scale", [None, 0.25, 0.37, 612.4])
def test_values_and_scales(format, largest, dtype, global_scale):
    x = data(3, 64, dtype=dtype)
    scale = None if global_scale is None else torch.full((1,), global_scale)
    factor = Fraction(1) if scale is None else Fraction(float(scale))
    truth = reference.quantised(x, scale, format=format)
    assert (truth["x_q"].dtype, truth["sf"].dtype) == (torch.float32, torch.float64)
    assert truth["sf"].shape == (3, 64 // format.block)
    for row in range(3):
        for column in range(64):
            exact = float(Fraction(float(x[row, column])) * factor)
            assert truth["x_q"][row, column] == pytest.approx(exact, rel=2**-24, abs=0)
        for index, block in enumerate(x[row].split(format.block)):
            exact = max(Fraction(abs(float(value))) for value in block) * factor / largest
            assert truth["sf"][row, index] == pytest.approx(float(exact), rel=1e-15)


def test_a_power_of_two_as_global_scale_rounds_nothing():
    x = data(4, 32)
    truth = reference.quantised(x, torch.full((1,), 0.25), format=NVFP4)
    assert torch.equal(truth["x_q"].double() * 4, x.double())


def test_batches_keep_their_shape():
    truth = reference.quantised(data(2, 3, 64), torch.full((1,), 2.0), format=NVFP4)
    assert {name: tuple(part.shape) for name, part in truth.items()} == {"x_q": (2, 3, 64), "sf": (2, 3, 4)}


def test_the_truth_outlives_the_input():
    x = data(2, 32)
    before = x.float()
    truth = reference.quantised(x, format=MXFP8)
    x.fill_(float("nan"))
    assert torch.equal(truth["x_q"], before)


def test_large_inputs_are_taken_in_parts(monkeypatch):
    x, scale = data(64, 96), torch.full((1,), 0.37)
    whole = reference.quantised(x, scale, format=NVFP4)
    monkeypatch.setattr(reference, "ELEMENTS_AT_A_TIME", 7 * 96)
    parts = reference.quantised(x, scale, format=NVFP4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
