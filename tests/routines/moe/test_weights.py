"""Experts' weights: one layer over all ranks, right in their formats, never whole in full precision."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.weights import FP8_BLOCK, FP8_TENSOR, NVFP4, SIXTEEN_BITS, Drawn
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank

FORMATS = {"16 bits": SIXTEEN_BITS, "FP8": FP8_TENSOR, "FP8 blocks": FP8_BLOCK, "NVFP4": NVFP4}
ERRORS = {"16 bits": 0.0, "FP8": 0.04, "FP8 blocks": 0.04, "NVFP4": 0.12}
"""Relative L2 norm of what a format may change."""
each_format = pytest.mark.parametrize("format", FORMATS)


def factory(free=1 << 30):
    return TensorFactory("cpu", 42, free, SingleRank())


def drawn(experts=range(4), activation="Swiglu", **ranks):
    return Drawn(Layer(activation, experts), (256, 384), DType.BFLOAT16, **ranks)


@each_format
@pytest.mark.parametrize("activation", ["Swiglu", "Relu2"])
def test_shapes_and_values(format, activation):
    what = drawn(activation=activation)
    made = FORMATS[format].make(factory(), what)
    rows = 768 if activation == "Swiglu" else 384
    for name, shape in (("w1", (rows, 256)), ("w2", (256, 384))):
        for index, expected in enumerate(what.experts(factory(), name)):
            found = FORMATS[format].decoded(made, name, index)
            if format == "FP8 blocks":  # every second tile is halved
                found = found * tile_ratio(found, expected)
            assert found.shape == shape
            assert (found - expected).norm() <= ERRORS[format] * expected.float().norm()


def tile_ratio(found, expected):
    """1 or 2 for every tile of 128 x 128."""
    sizes = [values.float().unflatten(1, (-1, 128)).unflatten(0, (-1, 128)) for values in (expected, found)]
    ratio = (sizes[0].norm(dim=(1, 3)) / sizes[1].norm(dim=(1, 3))).round()
    assert {1.0, 2.0} >= set(ratio.flatten().tolist())
    return ratio.repeat_interleave(128, 0).repeat_interleave(128, 1)


@each_format
def test_ranks_hold_experts_of_one_layer(format):
    whole, part = (FORMATS[format].make(factory(), drawn(experts)) for experts in (range(4), range(2, 4)))
    for index in range(2):
        one = FORMATS[format].decoded(whole, "w1", index + 2).abs().gt(0)
        assert torch.equal(one, FORMATS[format].decoded(part, "w1", index).abs().gt(0))
    if format != "FP8 blocks":  # which tiles are halved is drawn for all experts of a rank
        assert all(torch.equal(whole[name][2:].view(torch.uint8), part[name].view(torch.uint8)) for name in part)


def test_ranks_hold_parts_of_the_intermediate_size():
    whole = SIXTEEN_BITS.make(factory(), drawn())
    parts = [SIXTEEN_BITS.make(factory(), drawn(tp_size=3, tp_rank=rank)) for rank in range(3)]
    up, gate = (torch.cat([part["w1"].chunk(2, 1)[half] for part in parts], 1) for half in range(2))
    assert torch.equal(torch.cat((up, gate), 1), whole["w1"])
    assert torch.equal(torch.cat([part["w2"] for part in parts], 2), whole["w2"])


def test_neighbours_differ_by_more_than_a_format_loses():
    scales = FP8_TENSOR.make(factory(), drawn(range(8)))["w1_scale"]
    assert ((scales / scales.roll(1) - 1).abs() > 0.3).all()


@each_format
def test_what_cannot_fit_is_refused_with_both_byte_counts(format):
    with pytest.raises(DoesNotFit) as refusal:
        FORMATS[format].make(factory(free=1 << 20), drawn(range(64)))
    assert str(int((1 << 20) * 0.9)) in str(refusal.value)
    assert "needs at least" in str(refusal.value)


def test_the_documented_54_billion_weights_fit_beside_one_expert_in_fp32(monkeypatch):
    """Accounted for, and made without memory: 54.36e9 bytes, and what quantising one expert takes."""
    account = factory(free=int(60e9 / 0.9))
    account.device = "meta"
    monkeypatch.setattr(account, "generator", lambda *_: None)
    monkeypatch.setattr(Drawn, "experts", lambda *_: iter(()))
    made = FP8_BLOCK.make(account, Drawn(Layer("Swiglu", range(256)), (5120, 13824), DType.BFLOAT16))
    assert sum(tensor.nbytes for tensor in made.values()) == 256 * 3 * 5120 * 13824 * (1 + 4 / 128**2)
