from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.moe_tool.channels import FP8_CHANNEL
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.weights import Drawn
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank


def test_each_row_has_a_scale_of_its_own_and_stands_for_what_was_drawn():
    make = TensorFactory("cpu", 1, 1 << 30, SingleRank())
    drawn = Drawn(Layer("Swiglu", range(3)), (64, 32), DType.FLOAT16)
    weights = FP8_CHANNEL.make(make, drawn)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "w1": (3, 64, 64),
        "w1_scale": (3, 64),
        "w2": (3, 64, 32),
        "w2_scale": (3, 64),
    }
    assert bool((weights["w1"].float().abs().amax(-1) == 448).all())
    for name in ("w1", "w2"):
        for index, values in enumerate(drawn.experts(make, name)):
            error = (FP8_CHANNEL.decoded(weights, name, index) - values.float()).norm() / values.float().norm()
            assert error < 0.03
