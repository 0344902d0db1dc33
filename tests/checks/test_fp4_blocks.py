"""The check of FP4 blocks: what a kernel's arithmetic explains passes, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks import fp4_blocks, scaled_elements, tolerance
from flashinfer_perf.checks.block_formats import FORMATS
from flashinfer_perf.checks.fp4_blocks import most
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import e2m1, mxfp4, nvfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4

NVFP4, MXFP4 = DType.NVFP4, DType.MXFP4
BOTH = [NVFP4, MXFP4]
ROWS, COLUMNS = 130, 320  # neither a multiple of a tile


def data(rows=ROWS, columns=COLUMNS, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def truth_of(values, format):
    """As references give it."""
    wanted = values.double().unflatten(-1, (-1, FORMATS[format].block)).abs().amax(dim=-1) / 6
    return {"y": values, "scale": wanted}


def encode(values, format):
    quantised = nvfp4.encode(values, zero_lost=True) if format is NVFP4 else mxfp4.encode(values)
    return {"y": quantised.packed, "scale": quantised.scales}


def judge(output, truth, format, swizzled=False, input_dtype=DType.BFLOAT16, roundings=1):
    scales = tolerance.for_fp4_scales(format, input_dtype, roundings, swizzled)
    elements = tolerance.for_fp4_elements(format, input_dtype, roundings, "scale", swizzled)
    return scales.judge("scale", output, truth), elements.judge("y", output, truth)


def verdict(output, truth, format, **options):
    return [finding.passed for finding in judge(output, truth, format, **options)]


@pytest.mark.parametrize(("count", "fraction"), [(12, 0.05), (64, 0.009), (100_000, 0.002), (1, 0.05)])
def test_the_most_that_may_differ_is_exceeded_once_in_a_million(count, fraction):
    from scipy.stats import binom

    limit = most(count, fraction)
    assert binom.sf(limit, count, fraction) <= fp4_blocks.FALSE_ALARM
    assert limit == 0 or binom.sf(limit - 1, count, fraction) > fp4_blocks.FALSE_ALARM


# ---- Right outputs ----


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_exact_arithmetic_passes_and_nothing_differs(format, swizzled, size):
    values = data() * size
    output = encode(values, format)
    if swizzled:
        output["scale"] = swizzle_128x4(output["scale"]).flatten()
    scales, elements = judge(output, truth_of(values, format), format, swizzled=swizzled)
    assert (scales.passed, scales.differing) == (True, 0)
    assert (elements.passed, elements.differing) == (True, 0)


@pytest.mark.parametrize("input_dtype", [DType.BFLOAT16, DType.FLOAT16])
@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("roundings", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_values_rounded_on_the_way_pass(format, input_dtype, roundings, seed):
    """As FlashInfer's kernels round them. That something differs shows that the allowance is needed."""
    values, factor = data(256, 2048, seed), data(1, 2048, seed + 100)
    rounded = values.to(input_dtype.torch)
    if roundings == 2:
        rounded = rounded * factor.to(input_dtype.torch)
        values = values * factor.to(input_dtype.torch).float()
    truth = truth_of(values, format)
    scales, elements = judge(
        encode(rounded.float(), format), truth, format, input_dtype=input_dtype, roundings=roundings
    )
    assert scales.passed, scales.detail
    assert elements.passed, elements.detail
    assert scales.differing
    assert elements.differing


@pytest.mark.parametrize("format", BOTH)
def test_zeros_are_right_for_zeros(format):
    values = torch.zeros(3, 64)
    output = {"y": torch.zeros(3, 32, dtype=torch.uint8), "scale": encode(values, format)["scale"]}
    assert verdict(output, truth_of(values, format), format) == [True, True]


def test_elements_of_a_lost_scale_are_not_looked_at():
    """They are worth nothing whatever they are: FlashInfer's quantisers write ±6, its norms zeros."""
    values = torch.full((2, 16), 2.0**-11)
    output = {"scale": torch.zeros(2, 1, dtype=torch.uint8)}
    for packed in (0x00, 0x77, 0xFF):
        output["y"] = torch.full((2, 8), packed, dtype=torch.uint8)
        assert verdict(output, truth_of(values, NVFP4), NVFP4) == [True, True]


@pytest.mark.parametrize("format", BOTH)
def test_padding_is_not_compared(format):
    values = data()
    output = encode(values, format)
    tiles = swizzle_128x4(output["scale"])
    valid = swizzle_128x4(torch.ones_like(output["scale"])).bool()
    assert not bool(valid.all())
    output["scale"] = torch.where(valid, tiles, torch.full_like(tiles, 0xFF)).flatten()
    assert verdict(output, truth_of(values, format), format, swizzled=True) == [True, True]


def test_three_dimensions():
    values = data().reshape(13, 10, COLUMNS)
    assert verdict(encode(values, NVFP4), truth_of(values, NVFP4), NVFP4) == [True, True]


def test_a_few_rows_at_a_time_are_as_good_as_all(monkeypatch):
    values = data()
    output = encode((values.bfloat16()).float(), NVFP4)
    _, whole = judge(output, truth_of(values, NVFP4), NVFP4)
    monkeypatch.setattr(scaled_elements, "ELEMENTS_AT_A_TIME", 7 * COLUMNS)
    _, parts = judge(output, truth_of(values, NVFP4), NVFP4)
    assert (parts.differing, parts.elements) == (whole.differing, whole.elements)
    assert parts.relative_l2 == pytest.approx(whole.relative_l2)
    assert parts.cosine == pytest.approx(whole.cosine)


# ---- Wrong outputs ----


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_constant_outputs_fail(format, byte):
    values = data()
    output = {name: torch.full_like(part, byte) for name, part in encode(values, format).items()}
    scales, elements = judge(output, truth_of(values, format), format)
    assert not scales.passed
    if byte:
        assert not elements.passed


@pytest.mark.parametrize("format", BOTH)
def test_zero_elements_under_right_scales_fail(format):
    values = data()
    output = encode(values, format)
    output["y"].zero_()
    assert verdict(output, truth_of(values, format), format) == [True, False]


@pytest.mark.parametrize(("format", "byte"), [(NVFP4, 0x7F), (NVFP4, 0xFF), (MXFP4, 0xFF)])
@pytest.mark.parametrize("size", [1.0, 1e6])  # with the latter NaN is the code beside the right one, 448
def test_one_scale_that_is_no_number_fails(format, byte, size):
    values = data() * size
    output = encode(values, format)
    output["scale"][3, 5] = byte
    assert verdict(output, truth_of(values, format), format) == [False, False]


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("steps", [-2, 2])
def test_one_scale_two_codes_off_fails(format, steps):
    values = data()
    output = encode(values, format)
    output["scale"][7, 2] += steps
    scales, _ = judge(output, truth_of(values, format), format)
    assert not scales.passed
    assert scales.worst_index == (7, 2)


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("steps", [-1, 1])
def test_all_scales_one_code_off_fail(format, steps):
    """Although each is within a code, and elements fit their own scale."""
    values = data()
    output = encode(values, format)
    output["scale"] += steps
    scale = FORMATS[format].decode(output["scale"])[..., None]
    codes = e2m1.encode((values.double().unflatten(-1, (-1, FORMATS[format].block)) / scale).float())
    output["y"] = e2m1.pack(codes.flatten(-2))
    scales, elements = judge(output, truth_of(values, format), format)
    assert not scales.passed
    assert elements.differing == 0
    if format is MXFP4:
        assert not elements.passed, "it loses more than 25 % more"


@pytest.mark.parametrize("format", BOTH)
def test_one_element_two_steps_off_fails(format):
    values = data()
    output = encode(values, format)
    low, high = int(output["y"][9, 4]) & 0xF, int(output["y"][9, 4]) & 0xF0
    output["y"][9, 4] = high | (low - 2 if low & 7 >= 2 else low + 2)
    _, elements = judge(output, truth_of(values, format), format)
    assert not elements.passed


@pytest.mark.parametrize("format", BOTH)
def test_a_lost_sign_fails(format):
    values = data()
    output = encode(values, format)
    output["y"] &= 0x7F
    assert verdict(output, truth_of(values, format), format) == [True, False]


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("shift", [0.1, 0.03])
def test_many_elements_one_step_off_fail(format, shift):
    """Ties a little too high: what that loses by quantisation can hardly be seen, their number can."""
    values = data()
    output = encode(values, format)
    scale = FORMATS[format].decode(output["scale"])[..., None]
    scaled = values.double().unflatten(-1, (-1, FORMATS[format].block)) / scale
    codes = e2m1.encode((scaled / (1 + shift)).float())
    output["y"] = e2m1.pack(codes.flatten(-2))
    assert verdict(output, truth_of(values, format), format) == [True, False]


@pytest.mark.parametrize("format", BOTH)
def test_swapped_halves_of_bytes_fail(format):
    values = data()
    output = encode(values, format)
    output["y"] = (output["y"] >> 4) | (output["y"] << 4)
    assert verdict(output, truth_of(values, format), format) == [True, False]


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("name", ["y", "scale"])
def test_one_row_off_fails(format, name):
    values = data()
    output = encode(values, format)
    output[name] = output[name].roll(1, dims=0)
    assert not all(verdict(output, truth_of(values, format), format))


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.03, 2.0])
def test_a_wrong_global_scale_fails(factor):
    values = data() * 100
    assert verdict(encode(values * factor, NVFP4), truth_of(values, NVFP4), NVFP4)[0] is False


def test_a_global_scale_on_the_scales_only_fails():
    values = data() * 100
    output = {**encode(values, NVFP4), "scale": encode(values * 2, NVFP4)["scale"]}
    assert verdict(output, truth_of(values, NVFP4), NVFP4) == [False, False]


@pytest.mark.parametrize("format", BOTH)
def test_a_layout_for_another_fails(format):
    """Row by row where tiles are due and the other way round, also where the number of bytes is the same."""
    values = data(128, 512)
    output, truth = encode(values, format), truth_of(values, format)
    tiles = swizzle_128x4(output["scale"])
    assert verdict({**output, "scale": output["scale"].flatten()}, truth, format, swizzled=True) == [False, False]
    assert verdict({**output, "scale": tiles}, truth, format) == [False, False]
    assert verdict({**output, "scale": tiles.flatten()}, truth, format, swizzled=True) == [True, True]


@pytest.mark.parametrize("format", BOTH)
def test_wrong_shapes_fail(format):
    values = data()
    output, truth = encode(values, format), truth_of(values, format)
    for wrong in ({"y": output["y"][1:]}, {"scale": output["scale"][:, 1:]}, {"y": output["y"].flatten()}):
        assert not all(verdict({**output, **wrong}, truth, format))
    scales, elements = judge(output, truth, format, swizzled=True)
    assert not scales.passed
    assert not elements.passed
    assert "of 128x4 tiles" in scales.detail


@pytest.mark.parametrize("format", BOTH)
def test_a_mismatch_shows_where_it_is_worst(format):
    values = data()
    output = encode(values, format)
    output["y"][11, 21] ^= 0x88
    _, elements = judge(output, truth_of(values, format), format)
    assert elements.worst_index[0] == 11
    assert elements.worst_index[1] in (42, 43)
    assert elements.actual is not None
    assert math.isfinite(elements.actual.worst)


def test_agreement_of_two_backends_scales():
    values = data()
    check = tolerance.for_fp4_scales(NVFP4, DType.BFLOAT16, 1)
    one, other = encode(values, NVFP4), encode(values.bfloat16().float(), NVFP4)
    finding = check.agree("scale", one, other)
    assert finding.passed
    assert finding.differing
    assert not check.agree("scale", one, {"scale": one["scale"] + 1}).passed
    assert not check.agree("scale", one, {"scale": one["scale"][1:]}).passed
    assert tolerance.for_fp4_scales(NVFP4, DType.BFLOAT16, 1, swizzled=True).agree("scale", one, one) is None
    assert tolerance.for_fp4_elements(NVFP4, DType.BFLOAT16, 1, "scale").agree("y", one, other) is None
