"""What every check of elements with block scales shares: the loss by quantisation, and counts over slices of rows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from flashinfer_perf.checks import scaled_elements
from flashinfer_perf.checks.block_formats import MXFP4
from flashinfer_perf.checks.scaled_elements import ScaledElements
from flashinfer_perf.formats import mxfp4

ROWS, COLUMNS = 6, 64


@dataclass(frozen=True)
class Lenient(ScaledElements):
    """Counts what is not the nearest; finds wrong what is rank 7, of either sign, where it is told to."""

    most: float = float("inf")
    sevens_are_wrong: bool = False
    rule: str = "anything"

    def scale_bytes(self, output, truth):
        return output

    def verdicts(self, right, ranks, scales):
        nearest = self.format.nearest(right, self.format.decode(scales)[..., None])
        return ranks != nearest, (ranks.abs() == 7) & self.sevens_are_wrong

    def most_differing(self, elements):
        return self.most


def problem():
    """Values, their truth and the exact output."""
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    quantised = mxfp4.encode(values)
    wanted = values.double().unflatten(-1, (-1, MXFP4.block)).abs().amax(dim=-1) / 6
    return {"y": values, "scale": wanted}, {"y": quantised.packed, "scale": quantised.scales}


def judge(output, truth, **options):
    return Lenient(MXFP4, "scale", 1.25, **options).judge("y", output, truth)


def test_exact_arithmetic_loses_what_is_unavoidable():
    truth, output = problem()
    finding = judge(output, truth, most=0)
    assert (finding.passed, finding.differing, finding.elements) == (True, 0, ROWS * COLUMNS)
    expected = mxfp4.decode(type(mxfp4.encode(truth["y"]))(output["y"], output["scale"])).double()
    lost = (expected - truth["y"]).norm() / truth["y"].double().norm()
    assert finding.relative_l2 == pytest.approx(float(lost), rel=1e-6)
    assert finding.coverage == "the error of quantisation"  # not 0, though nothing differs


def test_a_loss_that_is_too_large_fails_by_itself():
    """No element is wrong, and any number may differ."""
    truth, output = problem()
    output["y"] &= 0x77
    finding = judge(output, truth)
    assert not finding.passed
    assert finding.relative_l2 > 1
    assert finding.worst_index is not None


def test_one_wrong_element_fails():
    truth, output = problem()
    assert judge(output, truth).passed
    assert not judge(output, truth, sevens_are_wrong=True).passed


@pytest.mark.parametrize(("most", "passed"), [(0, False), (1, True)])
def test_no_more_may_differ_than_the_check_says(most, passed):
    truth, output = problem()
    truth["y"][2, 3], output["y"][2, 1] = 0.0, output["y"][2, 1] & 0x0F | 0x10  # the smallest element, for 0
    finding = judge(output, truth, most=most)
    assert (finding.passed, finding.differing) == (passed, 1)


def test_slices_of_rows_add_up(monkeypatch):
    truth, output = problem()
    output["y"][4, 7] ^= 0x21
    whole = judge(output, truth)
    monkeypatch.setattr(scaled_elements, "ELEMENTS_AT_A_TIME", 4 * COLUMNS)
    parts = judge(output, truth)
    assert (parts.differing, parts.elements) == (whole.differing, whole.elements)
    assert parts.relative_l2 == pytest.approx(whole.relative_l2)
    assert parts.cosine == pytest.approx(whole.cosine)


def test_the_shape_is_judged_first():
    truth, output = problem()
    assert "shape" in judge({**output, "y": output["y"][1:]}, truth).detail
