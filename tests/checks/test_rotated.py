"""Rotated vectors: the bound follows the angle's error, and nothing else is let through."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.rotated import Rotated, RotatedHeads
from flashinfer_perf.checks.tolerance.rotation import CACHED_ANGLE_ERROR, LARGEST_ANGLE_ERROR, LEAST_ANGLE_ERROR
from flashinfer_perf.core.dtypes import DType

LAYOUTS = [False, True]
HEADS = {interleave: RotatedHeads(head_dim=12, rotary_dim=8, interleave=interleave) for interleave in LAYOUTS}
POSITIONS = torch.tensor([0, 3, 1000])
ANGLE_ERROR = torch.tensor([1e-6, 1e-7, 1e-8, 1e-9], dtype=torch.float64)


def check(interleave: bool = False, **more: object) -> Rotated:
    within = tolerance.for_rotation(DType.FLOAT16, HEADS[interleave], POSITIONS, ANGLE_ERROR)
    return Rotated(**{**vars(within), **more})  # type: ignore[arg-type]


def truth() -> torch.Tensor:
    return torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("interleave", "partner"), [(False, 4), (True, 1)])
def test_pairs(interleave: bool, partner: int):
    pairs = HEADS[interleave].pairs(torch.arange(12.0)[None])
    assert pairs.shape == (1, 4, 2)
    assert pairs[0, 0].tolist() == [0, partner]
    assert torch.equal(HEADS[interleave].members(pairs), torch.arange(8.0)[None])


@pytest.mark.parametrize("interleave", LAYOUTS)
def test_the_bound_is_rounding_and_the_angles_error_times_the_pairs_length(interleave: bool):
    expected = truth()
    allowed = check(interleave).allowed(expected)
    one, two = (2, 3) if interleave else (1, 5)  # of pair 1
    values = expected[2, 1]
    length = math.hypot(values[one], values[two])
    angle = 1000 * 1e-7 + LEAST_ANGLE_ERROR
    for member in (one, two):
        rounding = (2**-11 + 4 * 2**-24) * abs(values[member]) + 2**-25
        assert allowed[2, 1, member].item() == pytest.approx(float(rounding + length * angle))
    assert not allowed[..., 8:].any(), "what is not rotated is copied"


@pytest.mark.parametrize("interleave", LAYOUTS)
def test_two_dimensions_have_the_same_bound(interleave: bool):
    expected = truth()
    flat = check(interleave).allowed(expected.flatten(1))
    assert torch.equal(flat, check(interleave).allowed(expected).flatten(1))


@pytest.mark.parametrize("interleave", LAYOUTS)
@pytest.mark.parametrize(("factor", "passes"), [(0.99, True), (1.01, False)])
def test_at_the_bound(interleave: bool, factor: float, passes: bool):
    expected = truth()
    actual = expected + factor * check(interleave).allowed(expected)
    finding = check(interleave).judge("q_rope", {"q_rope": actual}, {"q_rope": expected})
    assert finding.passed is passes


def test_no_angle_is_forgiven_more_than_the_largest_error():
    far = check(positions=torch.tensor([10**9] * 3))
    expected = truth()
    length = far.heads.pairs(expected).norm(dim=-1)
    off = far.heads.pairs(far.allowed(expected)).amax(dim=-1)
    assert bool((off <= (LARGEST_ANGLE_ERROR + 2**-10) * length).all())


def test_nan_and_shape_never_pass():
    wrong = truth()
    wrong[1, 1, 9] = math.nan
    assert not check().judge("q", {"q": wrong}, {"q": truth()}).passed
    assert not check().judge("q", {"q": truth()[:2]}, {"q": truth()}).passed


def test_two_backends_may_be_twice_as_far_apart():
    expected = truth()
    other = expected + 1.9 * check().allowed(expected)
    finding = check().agree("q", {"q": other}, {"q": expected})
    assert finding is not None
    assert finding.passed
    assert not check().judge("q", {"q": other}, {"q": expected}).passed
    assert check().probe("q", None, {}) is None  # type: ignore[arg-type]


def turned(heads: torch.Tensor, radians: float) -> torch.Tensor:
    """Every pair turned by so much more."""
    pairs = torch.view_as_complex(HEADS[False].pairs(heads).contiguous())
    more = torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), torch.tensor(radians).double()))
    return torch.cat([HEADS[False].members(more), heads[..., 8:]], dim=-1)


@pytest.mark.parametrize(("radians", "agree"), [(0.24, True), (0.27, False)])
def test_also_where_angles_are_off_by_the_most_that_is_forgiven(radians: float, agree: bool):
    """On opposite sides of the truth, from which each may be 0.25 away."""
    far = check(positions=torch.tensor([10**9] * 3))
    one, other = turned(truth(), radians), turned(truth(), -radians)
    assert far.judge("q", {"q": one}, {"q": truth()}).passed is agree
    finding = far.agree("q", {"q": one}, {"q": other})
    assert finding is not None
    assert finding.passed is agree


def test_a_given_angle_has_the_error_of_its_arithmetic_only():
    given = tolerance.for_rotation(DType.BFLOAT16, HEADS[False], POSITIONS)
    assert given.least_angle_error == CACHED_ANGLE_ERROR == 2**-22
    assert "given" in given.text
    rows = given.allowed(truth())
    assert bool((rows[..., :8] > 0).all())
