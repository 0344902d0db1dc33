"""NVFP4 experts in our kernels' order: what moves where, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.fp4_order import inner_rows
from flashinfer_perf.kernels.moe.fp4_weights import PreparedFp4, prepared
from flashinfer_perf.kernels.moe.fp4_words import scales_of, words_of
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

EXPERTS, HIDDEN, INTERMEDIATE = 2, 128, 64


def weights() -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randint(1, 127, shape, dtype=torch.uint8, generator=generator)  # noqa: E731
    first, second = (EXPERTS, 2 * INTERMEDIATE, HIDDEN), (EXPERTS, HIDDEN, INTERMEDIATE)
    elements = (random(*shape[:2], shape[2] // 2) for shape in (first, second))
    scales = (random(*shape[:2], shape[2] // 16) for shape in (first, second))
    return ExpertWeights(ExpertFormat.NVFP4, *elements, *scales, torch.ones(EXPERTS), torch.ones(EXPERTS))


@pytest.mark.parametrize(("name", "inner"), [("w1", True), ("w2", False)])
@pytest.mark.parametrize("quad", [0, 5])
@pytest.mark.parametrize("thread", range(4))
def test_a_thread_has_its_rows_next_to_each_other(name, inner, quad, thread):
    """Of 16 rows and 64 columns: words of two bytes of one row and two of the other, and both rows' scales."""
    given = weights()
    made = prepared(given)
    expert, block, chunk = 1, 2, 0
    rows = torch.tensor([16 * block + quad, 16 * block + quad + 8])
    rows = inner_rows(INTERMEDIATE, gated=True)[rows] if inner else rows
    old, old_scale = getattr(given, name)[expert, rows], getattr(given, f"{name}_scale")[expert, rows]
    new, new_scale = (getattr(made, field)[expert].view(-1) for field in (name, f"{name}_scale"))
    lane = 4 * quad + thread
    columns = getattr(given, name).shape[2] * 2
    start = (block * columns // 64 + chunk) * 32 + lane
    own = old[:, 32 * chunk + 8 * thread :][:, :8].view(2, 4, 2).transpose(0, 1).reshape(-1)
    assert torch.equal(new[16 * start : 16 * start + 16].view(-1, 4), words_of(own).view(-1, 4))
    assert torch.equal(new_scale[2 * start : 2 * start + 2], scales_of(old_scale[:, 4 * chunk + thread]))


def test_a_scale_of_zero_makes_its_elements_zeros():
    given = weights()
    given.w2_scale[0, 3, 1] = 0
    changed = (prepared(given).w2 != prepared(weights()).w2).nonzero()
    made = prepared(given).w2[tuple(changed.T)]
    assert 0 < len(changed) <= 16
    assert (changed[:, 0] == 0).all()
    zeros = weights()
    zeros.w2[0, 3, 8:16] = 0
    assert torch.equal(made, prepared(zeros).w2[tuple(changed.T)])


def test_the_sign_of_a_scale_goes_to_its_elements():
    """NVFP4's have none, but E4M3 holds one."""
    given, opposite = weights(), weights()
    given.w1_scale[1, 7, 2] |= 0x80
    opposite.w1[1, 7, 16:24] ^= 0x88
    made, expected = prepared(given), prepared(opposite)
    assert torch.equal(made.w1, expected.w1)
    assert torch.equal(made.w1_scale, expected.w1_scale)
    assert not torch.equal(made.w1, prepared(weights()).w1)


def test_what_is_given_stays_as_it_is_and_what_is_prepared_is_taken():
    given, same = weights(), weights()
    made = prepared(given)
    assert isinstance(made, PreparedFp4)
    assert prepared(made) is made
    for name in ("w1", "w2", "w1_scale", "w2_scale"):
        assert torch.equal(getattr(given, name), getattr(same, name))
