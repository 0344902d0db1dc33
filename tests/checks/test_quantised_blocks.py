"""The check of quantisers: what fp32 arithmetic explains passes, and nothing else."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks import scaled_elements, tolerance
from flashinfer_perf.checks.block_formats import MXFP4, MXFP8, NVFP4
from flashinfer_perf.checks.quantised_blocks import Placed
from flashinfer_perf.formats import e2m1, mxfp4, mxfp8, nvfp4
from flashinfer_perf.formats.scale_layout import LAYOUTS, arrange, padded_shape
from flashinfer_perf.formats.shuffle import shuffle_rows

FORMATS = {"nvfp4": NVFP4, "mxfp4": MXFP4, "mxfp8": MXFP8}
NAMES = list(FORMATS)
ROWS, COLUMNS = 130, 320  # neither a multiple of a tile
ULP = 2.0**-23

each = pytest.mark.parametrize("name", NAMES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def data(rows=ROWS, columns=COLUMNS, dtype=torch.bfloat16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)


def truth_of(x, name, global_scale=1.0):
    format = FORMATS[name]
    wanted = x.double().unflatten(-1, (-1, format.block)).abs().amax(dim=-1) * global_scale / format.elements[-1]
    return {"x_q": (x.double() * global_scale).float(), "sf": wanted}


def encode(x, name, global_scale=1.0):
    if name == "nvfp4":
        found = nvfp4.encode(x, global_scale)
    else:
        found = mxfp4.encode(x) if name == "mxfp4" else mxfp8.encode(x)
    return {"x_q": found[0].view(torch.uint8), "sf": found[1]}


def placed(sf, layout="linear", shuffled=False):
    *batch, rows, columns = sf.shape
    return Placed(layout, (*batch, *padded_shape(layout, rows, columns)), shuffled)


def verdict(output, truth, name, where=None, global_scale=1.0):
    return [finding.passed for finding in judge(output, truth, name, where, global_scale)]


def judge(output, truth, name, where=None, global_scale=1.0):
    where = where or placed(truth["sf"])
    scales = tolerance.for_quantised_scales(FORMATS[name], where)
    elements = tolerance.for_quantised_elements(FORMATS[name], where, "sf", global_scale)
    return scales.judge("sf", output, truth), elements.judge("x_q", output, truth)


# ---- Right outputs ----


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2.0**-6, 1.0, 300.0])
def test_ours_pass(name, dtype, size):
    x = data(dtype=dtype) * size
    scales, elements = judge(encode(x, name), truth_of(x, name), name)
    assert (scales.passed, scales.differing, elements.passed) == (True, 0, True)
    if name != "nvfp4":  # of which the reciprocal of a scale is rounded, and decides ties
        assert elements.differing == 0


@each
@each_layout
def test_layouts(name, layout):
    x = data()
    output, truth = encode(x, name), truth_of(x, name)
    where = placed(truth["sf"], layout)
    assert verdict({**output, "sf": arrange(output["sf"], layout)}, truth, name, where) == [True, True]
    flat = Placed(layout, (arrange(output["sf"], layout).numel(),))
    assert verdict({**output, "sf": arrange(output["sf"], layout).flatten()}, truth, name, flat) == [True, True]


def test_shuffled_rows():
    x = data(128, 256)
    output, truth = encode(x, "nvfp4"), truth_of(x, "nvfp4")
    where = placed(truth["sf"], "128x4", shuffled=True)
    shuffled = {key: shuffle_rows(part) for key, part in output.items()}
    shuffled["sf"] = arrange(shuffled["sf"], "128x4")
    assert verdict(shuffled, truth, "nvfp4", where) == [True, True]
    assert verdict({**shuffled, "x_q": output["x_q"]}, truth, "nvfp4", where) == [True, False]
    assert verdict({**shuffled, "sf": arrange(output["sf"], "128x4")}, truth, "nvfp4", where) == [False, False]


@each
def test_a_batch(name):
    x = data(3 * 20, 96).reshape(3, 20, 96)
    output, truth = encode(x, name), truth_of(x, name)
    where = placed(truth["sf"], "128x4")
    output["sf"] = arrange(output["sf"], "128x4")
    assert verdict(output, truth, name, where) == [True, True]
    swapped = {**output, "sf": output["sf"].flip(0)}
    assert verdict(swapped, truth, name, where) == [False, False]


@pytest.mark.parametrize("global_scale", [0.37, 3.0, 100.0, 2688 / 4.1])
def test_global_scales(global_scale):
    x = data()
    truth = truth_of(x, "nvfp4", global_scale)
    assert verdict(encode(x, "nvfp4", global_scale), truth, "nvfp4", global_scale=global_scale) == [True, True]


@pytest.mark.parametrize("global_scale", [1.0, 0.37])
@pytest.mark.parametrize("ulps", [-2, -1, 1, 2])
def test_reciprocals_that_err_by_a_few_ulps_pass(monkeypatch, ulps, global_scale):
    """As rcp.approx does. That something differs shows that the allowance is needed."""
    x = data(512, 1024)
    truth = truth_of(x, "nvfp4", global_scale)
    monkeypatch.setattr(nvfp4, "SIXTH", nvfp4.SIXTH * (1 + ulps * ULP))
    scales, elements = judge(encode(x, "nvfp4", global_scale), truth, "nvfp4", global_scale=global_scale)
    assert scales.passed
    assert elements.passed
    assert scales.differing or global_scale != 1.0


@pytest.mark.parametrize("ulps", [-1, 1])
def test_output_scales_that_err_by_an_ulp_pass_where_they_are_not_exact(ulps):
    x = data(512, 1024)
    truth = truth_of(x, "nvfp4")
    output = encode(x, "nvfp4")
    scale = output["sf"].view(torch.float8_e4m3fn).float()[..., None]
    factor = torch.where(torch.frexp(scale).mantissa == 0.5, scale.reciprocal(), scale.reciprocal() * (1 + ulps * ULP))
    output["x_q"] = e2m1.pack(e2m1.encode(x.float().unflatten(-1, (-1, 16)) * factor).flatten(-2))
    scales, elements = judge(output, truth, "nvfp4")
    assert (scales.passed, scales.differing, elements.passed) == (True, 0, True)
    assert elements.differing


@pytest.mark.parametrize("ulps", [-1, 1])
def test_mx_elements_are_exact(ulps):
    """Their scales are powers of two: an ulp off is a wrong factor, and ties show it."""
    x = data(512, 1024)
    output, truth = encode(x, "mxfp4"), truth_of(x, "mxfp4")
    scaled = x.float().unflatten(-1, (-1, 32)) / 2.0 ** (output["sf"].float() - 127)[..., None]
    output["x_q"] = e2m1.pack(e2m1.encode(scaled * (1 + ulps * ULP)).flatten(-2))
    assert verdict(output, truth, "mxfp4") == [True, False]


@each
def test_zeros_are_right_for_zeros(name):
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    assert verdict(encode(x, name), truth_of(x, name), name) == [True, True]


@each
def test_a_few_rows_at_a_time_are_as_good_as_all(name, monkeypatch):
    x = data()
    output, truth = encode(x, name), truth_of(x, name)
    output["x_q"][3, 5] ^= 0x70
    _, whole = judge(output, truth, name)
    monkeypatch.setattr(scaled_elements, "ELEMENTS_AT_A_TIME", 7 * COLUMNS)
    _, parts = judge(output, truth, name)
    assert (parts.differing, parts.elements) == (whole.differing, whole.elements)
    assert parts.relative_l2 == pytest.approx(whole.relative_l2)


def test_blocks_whose_scale_is_lost():
    """Zeros, or what a division by zero makes; anything else is not what a quantiser does."""
    x = torch.tensor([[2.0**-12, -(2.0**-12), *[0.0] * 14]], dtype=torch.bfloat16)
    output, truth = encode(x, "nvfp4"), truth_of(x, "nvfp4")
    assert output["x_q"][0, 0] == 0xF7
    assert verdict(output, truth, "nvfp4") == [True, True]
    for first, right in [(0x00, True), (0x80, True), (0x7F, False), (0x11, False), (0xFF, False)]:
        rest = 0x00 if right else 0x77
        packed = torch.tensor([[first, *[rest] * 7]], dtype=torch.uint8)
        assert verdict({**output, "x_q": packed}, truth, "nvfp4") == [True, right], hex(first)


@each
def test_the_sign_of_zero_is_not_judged(name):
    """Both decode to zero; that ours keeps it is tested bit for bit."""
    x = torch.tensor([[1.0, -(2.0**-30), *[0.0] * 30]], dtype=torch.bfloat16)
    output, truth = encode(x, name), truth_of(x, name)
    negative = 0x80
    where = (0, 0) if FORMATS[name].packed else (0, 1)
    assert output["x_q"][where] & negative
    output["x_q"][where] &= ~negative & 0xFF
    assert verdict(output, truth, name) == [True, True]


# ---- Wrong outputs ----


@each
@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_constant_outputs_fail(name, byte):
    x = data()
    output = {key: torch.full_like(part, byte) for key, part in encode(x, name).items()}
    assert not any(verdict(output, truth_of(x, name), name))


@each
def test_zero_elements_under_right_scales_fail(name):
    x = data()
    output = encode(x, name)
    output["x_q"].zero_()
    assert verdict(output, truth_of(x, name), name) == [True, False]


@each
@pytest.mark.parametrize("byte", [0x7F, 0xFF, 0x80])
@pytest.mark.parametrize("size", [1.0, 3e38])  # with the latter NaN is the code beside the right one
def test_one_scale_that_is_no_number_fails(name, byte, size):
    x = data().clamp(-1, 1) * size
    output = encode(x, name)
    if int(output["sf"][3, 5]) == byte:
        byte -= 3
    output["sf"][3, 5] = byte
    assert verdict(output, truth_of(x, name), name) == [False, False]


def test_one_element_that_is_nan_fails():
    """Also beside the largest number."""
    x = data()
    x[3, 5] = 448.0
    for byte in (0x7F, 0xFF):
        output = encode(x, "mxfp8")
        assert output["x_q"][3, 5] == 0x7E
        output["x_q"][3, 5] = byte
        assert verdict(output, truth_of(x, "mxfp8"), "mxfp8") == [True, False]


@each
@pytest.mark.parametrize("steps", [-1, 1])
def test_one_scale_one_code_off_fails_even_with_elements_that_fit(name, steps):
    x = data()
    output = encode(x, name)
    row, column = 7, 2
    block = FORMATS[name].block
    amax = x[row, column * block : (column + 1) * block].abs().max()
    assert float(torch.frexp(amax).mantissa) not in (0.75, 0.875)  # no tie
    output["sf"][row, column] += steps
    scales, _ = judge(output, truth_of(x, name), name)
    assert not scales.passed
    assert scales.worst_index == (7, 2)


@pytest.mark.parametrize(("name", "amax"), [("mxfp4", 1.5), ("mxfp8", 1.75), ("nvfp4", 6.375)])
def test_beside_a_tie_either_scale_passes(name, amax):
    """amax / 6 or / 448 is a power of two, or lies in the middle between two numbers of E4M3."""
    x = torch.full((1, 32), amax, dtype=torch.bfloat16)
    truth = truth_of(x, name)
    right = encode(x, name)["sf"]
    passing = []
    for steps in (-2, -1, 0, 1, 2):
        scales, _ = judge({**encode(x, name), "sf": right + steps}, truth, name)
        passing += [steps] if scales.passed else []
    assert len(passing) == 2
    assert 0 in passing


@each
def test_one_element_one_step_off_fails(name):
    x = data()
    output = encode(x, name)
    byte = int(output["x_q"][9, 4])
    output["x_q"][9, 4] = byte - 1 if byte & 7 else byte + 1
    truth = truth_of(x, name)
    _, elements = judge(output, truth, name)
    assert not elements.passed
    assert elements.differing == judge(encode(x, name), truth, name)[1].differing + 1
    assert elements.worst_index[0] == 9
    assert elements.worst_index[1] in (4, 8, 9)


@each
def test_a_lost_sign_fails(name):
    x = data()
    output = encode(x, name)
    output["x_q"] &= 0x7F
    assert verdict(output, truth_of(x, name), name) == [True, False]


@each
@pytest.mark.parametrize("key", ["x_q", "sf"])
@pytest.mark.parametrize("dim", [0, 1])
def test_one_row_or_column_off_fails(name, key, dim):
    x = data()
    output = encode(x, name)
    output[key] = output[key].roll(1, dims=dim)
    assert not all(verdict(output, truth_of(x, name), name))


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.03, 2.0])
def test_a_wrong_global_scale_fails(factor):
    x = data()
    assert verdict(encode(x, "nvfp4", 100 * factor), truth_of(x, "nvfp4", 100), "nvfp4", global_scale=100.0)[0] is False


@each
def test_a_layout_for_another_fails_where_sizes_are_equal(name):
    x = data(128, 512)
    output, truth = encode(x, name), truth_of(x, name)
    arranged = {layout: arrange(output["sf"], layout) for layout in LAYOUTS}
    for layout in LAYOUTS:
        for other in LAYOUTS:
            passed = verdict({**output, "sf": arranged[other]}, truth, name, placed(truth["sf"], layout))
            assert passed == [layout == other] * 2, (layout, other)


@each
@pytest.mark.parametrize("layout", ["128x4", "8x4"])
def test_padding_that_is_not_zero_fails(name, layout):
    x = data()
    output, truth = encode(x, name), truth_of(x, name)
    tiles = arrange(output["sf"], layout)
    tiles.view(-1)[-1] = 1
    findings = judge({**output, "sf": tiles}, truth, name, placed(truth["sf"], layout))
    assert not any(finding.passed for finding in findings)
    assert "1 of" in findings[0].detail
    assert "bytes of padding are not zero" in findings[0].detail


@each
def test_wrong_shapes_fail(name):
    x = data()
    output, truth = encode(x, name), truth_of(x, name)
    for wrong in (
        {"x_q": output["x_q"][1:]},
        {"sf": output["sf"][:, 1:]},
        {"x_q": output["x_q"].flatten()},
        {"sf": output["sf"].flatten()},
    ):
        assert not all(verdict({**output, **wrong}, truth, name))


def test_agreement_of_two_backends():
    x = data()
    where = placed(truth_of(x, "nvfp4")["sf"])
    check = tolerance.for_quantised_scales(NVFP4, where)
    one = encode(x, "nvfp4")
    assert check.agree("sf", one, one).differing == 0
    assert check.agree("sf", one, {"sf": one["sf"] + 1}).passed
    assert not check.agree("sf", one, {"sf": one["sf"] + 2}).passed
    assert not check.agree("sf", one, {"sf": one["sf"][1:]}).passed
    assert tolerance.for_quantised_elements(NVFP4, where, "sf").agree("x_q", one, one) is None
