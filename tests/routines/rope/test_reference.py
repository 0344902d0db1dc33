"""The truth of the RoPE family, against formulas worked out by hand and properties of rotations."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.rotated import RotatedHeads
from flashinfer_perf.checks.tolerance.rotation import LEAST_ANGLE_ERROR
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.rope import frequencies, reference
from flashinfer_perf.routines.rope.flags import RopeFlags
from tests.routines.harness import problem_of
from tests.routines.rope import compiled

SHAPE = "--batch_size 2 --seq_len 6 --num_qo_heads 2 --num_kv_heads 1 --head_dim 16 --rotary_dim 8"


def flags(**more) -> RopeFlags:
    shape = dict(batch_size=1, seq_len=1, num_qo_heads=1, num_kv_heads=1, head_dim=128)
    return RopeFlags(**{**shape, **more})


# ---- Frequencies ----


def test_plain_frequencies():
    found = frequencies.frequencies(flags(head_dim=8, rope_theta=500.0, rope_scale=4.0), "cpu")
    assert found.plain.tolist() == pytest.approx([500 ** (-j / 4) for j in range(4)], rel=1e-15)
    assert found.scaled.tolist() == pytest.approx([500 ** (-j / 4) / 4 for j in range(4)], rel=1e-15)
    assert found.sensitivity.tolist() == [1.0] * 4


def test_llama31_by_wavelength():
    """As published: by how long a turn takes, in tokens."""
    case = flags(rope_theta=5e5, rope_scale=8.0)
    found = frequencies.llama31_frequencies(case, "cpu")
    kinds = set()
    for plain, scaled in zip(found.plain.tolist(), found.scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            kind, expected = "kept", plain
        elif wavelength > 8192 / 1:
            kind, expected = "divided", plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            kind, expected = "blended", (1 - smooth) * plain / 8 + smooth * plain
        kinds.add(kind)
        assert scaled == pytest.approx(expected, rel=1e-14)
    assert kinds == {"kept", "divided", "blended"}


def test_with_scale_1_llama31_is_plain_rope():
    case = flags(rope_scale=1.0)
    plain, llama31 = (make(case, "cpu") for make in (frequencies.frequencies, frequencies.llama31_frequencies))
    assert torch.allclose(plain.scaled, llama31.scaled, rtol=1e-14)


def test_low_frequency_factor_0():
    found = frequencies.llama31_frequencies(flags(low_freq_factor=0.0, rope_scale=8.0), "cpu")
    assert bool(found.scaled.isfinite().all())


def test_sensitivity_is_the_slope():
    """Measured by moving theta: relative change of a scaled frequency per relative change of the plain one."""
    one, two = (
        frequencies.llama31_frequencies(flags(rope_theta=theta, rope_scale=8.0), "cpu") for theta in (5e5, 5e5 + 1e-3)
    )
    ends = (one.plain * 8192 / (2 * math.pi)).sub(torch.tensor([[1.0], [4.0]])).abs().amin(dim=0) < 0.05
    slope = ((two.scaled / one.scaled - 1) / (two.plain / one.plain - 1))[1:]
    measured, allowed = slope[~ends[1:]], one.sensitivity[1:][~ends[1:]]
    assert bool((measured <= allowed * 1.001).all())
    assert measured.max() > 1.5, "a blend is more sensitive"
    assert bool((allowed <= measured * 1.001).all())


# ---- Rotation ----


@pytest.mark.parametrize(("interleave", "one", "two"), [(False, 3, 7), (True, 6, 7)])
def test_a_pair_by_hand(interleave, one, two):
    """Pair 3 of the second sequence's token 4, whose angle is 4 * 10000^(-6/8)."""
    layout = "--interleave" if interleave else ""
    _, problem = problem_of("apply_rope", f"{SHAPE} {layout}")
    x, truth = problem["q"][10, 1].double(), problem.truth()["q_rope"][10, 1]
    angle = 4 * 10000 ** (-6 / 8)
    assert truth[one].item() == pytest.approx(float(x[one] * math.cos(angle) - x[two] * math.sin(angle)), abs=1e-6)
    assert truth[two].item() == pytest.approx(float(x[two] * math.cos(angle) + x[one] * math.sin(angle)), abs=1e-6)
    assert torch.equal(truth[8:], x[8:].float())


def test_all_routines_agree():
    """One rotation in three guises: by offsets, by positions, by the cache."""
    by_offsets = problem_of("apply_rope", SHAPE)[1].truth()
    by_positions = problem_of("apply_rope_pos_ids", SHAPE)[1].truth()
    by_cache = problem_of("apply_rope_with_cos_sin_cache", SHAPE)[1].truth()
    assert torch.equal(by_offsets["q_rope"], by_positions["q_rope"])
    assert torch.allclose(by_offsets["q_rope"].flatten(1), by_cache["query_out"], atol=1e-5)
    assert torch.allclose(by_offsets["k_rope"].flatten(1), by_cache["key_out"], atol=1e-5)


@pytest.mark.parametrize("interleave", [False, True])
def test_products_depend_on_the_distance_only(interleave):
    """What RoPE is for."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, generator=generator, dtype=torch.float64).expand(2, 5, 1, 8)
    heads, used = RotatedHeads(8, 8, interleave), frequencies.frequencies(flags(head_dim=8), "cpu").scaled
    one, two = torch.arange(5), torch.arange(5) + 7
    products = (
        reference.rotated(q, reference.turns(one, used), heads)
        * reference.rotated(k, reference.turns(two, used), heads)
    ).sum(dim=-1)
    assert torch.allclose(products, products[:1].expand_as(products))


def test_positions_by_offsets():
    indptr, offsets = torch.tensor([0, 2, 2, 5]), torch.tensor([10, 20, 30])
    assert reference.positions_of(indptr, offsets).tolist() == [10, 11, 30, 31, 32]


def test_slices_do_not_show(monkeypatch):
    whole = problem_of("apply_rope", SHAPE)[1].truth()
    monkeypatch.setattr(reference, "ELEMENTS_AT_A_TIME", 40)
    parts = problem_of("apply_rope", SHAPE)[1].truth()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_quantised_value_is_rounded_once():
    """1.0625 + 2^-9 is nearer to 1.125; rounded to bfloat16 first it would be a tie and go to 1."""
    x = torch.tensor([[[1.0625 + 2**-10]]], dtype=torch.float16)
    assert reference.fp8(x, 1.0, DType.FP8_E4M3).float().item() == 1.125


# ---- The angles' error ----


@pytest.mark.parametrize("make", [frequencies.frequencies, frequencies.llama31_frequencies])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e7])
def test_fast_functions_stay_within_the_angles_error_and_need_it(make, theta):
    """Frequencies as a kernel has them, with errors as large as the vendor's bounds, at position 8191."""
    case = flags(rope_theta=theta, rope_scale=8.0)
    exact = make(case, "cpu")
    found = compiled.fast_power(1 / theta, torch.arange(0, 128, 2) / 128)
    if make is frequencies.llama31_frequencies:
        smooth = (found * (8192 / (2 * math.pi * 3)) - 1 / 3).clamp(0, 1)
        found = (1 - smooth) * (found * (1 / 8)) + smooth * found
    else:
        found = found * (1 / 8)
    sin, cos = compiled.fast_sincos(torch.tensor(8191.0) * found)
    angles = 8191 * exact.scaled
    off = torch.maximum((sin - angles.sin()).abs(), (cos - angles.cos()).abs())
    allowed = 8191 * tolerance.angle_error(exact.plain, exact.scaled, exact.sensitivity) + LEAST_ANGLE_ERROR
    assert float((off / allowed).max()) < 1
    assert float((off / allowed).max()) > 0.1, "it is not an order of magnitude too wide"
