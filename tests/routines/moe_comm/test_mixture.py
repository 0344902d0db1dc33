"""The experts between dispatch and combine; on GPUs: ``tests/gpu/test_moe_a2a.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashinfer_perf.routines.moe_comm import mixture
from flashinfer_perf.routines.moe_comm.mixture import ByTriton, LocalExperts, allowed, by_torch, experts_here, work_of
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.run.factory import TensorFactory
from tests.routines.harness import GIBIBYTE
from tests.routines.moe_comm.ranks import Rank
from tests.routines.moe_comm.test_traffic import flags_of

ROOT = Path(__file__).parents[3]
SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_experts": 6, "top_k": 2, "num_tokens": 10}
FORMATS = ["nvfp4", "fp8_block_scale"]


def case_of(format):
    return flags_of(**SIZES, quant_dtype=format, real_math=True)


def local(case, rank, size):
    numbers = experts_here(Experts(case.num_experts, size), rank)
    return LocalExperts(case, TensorFactory("cpu", 42, GIBIBYTE, Rank(rank, size)), numbers)


@pytest.mark.parametrize("format", FORMATS)
def test_ranks_hold_parts_of_one_layer(format):
    case = case_of(format)
    whole = local(case, 0, 1).draw()
    for rank in range(3):
        for name, part in local(case, rank, 3).draw().items():
            assert torch.equal(part.view(torch.uint8), whole[name][2 * rank : 2 * rank + 2].view(torch.uint8)), name
    assert not torch.equal(whole["w1"][0].view(torch.uint8), whole["w1"][1].view(torch.uint8))


@pytest.mark.parametrize("format", FORMATS)
def test_the_ranks_sums_make_up_the_truth(format):
    """PyTorch's experts of three ranks, added up; and what a rank makes of experts that are not its own is nothing."""
    case = case_of(format)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, 128, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(10)]).int()
    ids[0] = 6  # of a slot without a token
    routing = torch.rand(10, 2, generator=generator)
    wire = WIRE_FORMATS[format]
    factor = wire.factor(float(hidden.abs().amax()))
    payload = wire.encode(hidden, factor)
    total = torch.zeros(10, 128)
    for rank in range(3):
        experts = local(case, rank, 3)
        out = torch.empty(10, 128, dtype=torch.bfloat16)
        by_torch(case, factor, experts.numbers)((ids, routing, *payload), out, **experts.draw())
        total += out.float()
    assert torch.equal(total[0], torch.zeros(128))
    truth = local(case, 1, 3).truth(wire.decode(payload, factor)[1:], ids[1:], routing[1:])
    check = allowed(case, 3)
    assert check.judge("out", {"out": total[1:].bfloat16()}, {"out": truth}).passed
    neighbours = local(case, 1, 3).truth(wire.decode(payload, factor)[1:], (ids[1:] + 1) % 6, routing[1:])
    assert not check.judge("out", {"out": neighbours.bfloat16()}, {"out": truth}).passed


def test_work_is_the_documented_formula():
    ids = torch.tensor([[0, 1]] * 10)
    ranks = Rank(0, 2, ({0, 1}, {1, 5}))
    work = work_of(case_of("nvfp4"), ids, ranks)
    assert work.flops == 6 * 20 * 2 * 128 * 128
    assert work.bytes == 20 * 128 * (0.5625 + 2) + 3 * 3 * 128 * 128 * 0.5625
    block = work_of(case_of("fp8_block_scale"), ids, ranks)
    assert block.bytes == 20 * 128 * (1.03125 + 2) + 3 * 3 * 128 * 128 * (1 + 4 / 16384)


@pytest.mark.slow
def test_this_projects_kernels_compute_the_experts_that_are_here():
    """In Triton's interpreter."""
    pytest.importorskip("triton")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted_exchange_experts"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert json.loads(done.stdout) == {"nvfp4": True, "fp8_block_scale": True, "broken": False}


class Plan:
    """In place of this project's kernels."""

    def __init__(self, weights, **how):
        self.weights, self.how, self.calls = weights, how, []

    def use(self, weights):
        self.weights = weights

    def __call__(self, x, ids, routing, out, *, x_scale):
        self.calls.append((x, ids, routing, out, x_scale))


@pytest.mark.parametrize("format", FORMATS)
def test_the_kernels_get_what_arrived(format, monkeypatch):
    case = case_of(format)
    experts = local(case, 1, 3)
    tensors = {**experts.draw(), "hidden": torch.zeros(1)}
    kernels = pytest.importorskip("flashinfer_perf.kernels.moe.experts")
    monkeypatch.setattr(kernels, "TritonExperts", Plan)
    decoded = []
    rows_kernel = pytest.importorskip("flashinfer_perf.kernels.nvfp4_rows")
    monkeypatch.setattr(rows_kernel, "decode_rows", lambda *arguments: decoded.append(arguments))
    compute = ByTriton(case, Holding(tensors), 2.0, experts.numbers, slots=30)
    plan = compute._plan
    assert plan.how == {
        "num_tokens": 30,
        "top_k": 2,
        "num_experts": 6,
        "dtype": torch.bfloat16,
        "activation": "Swiglu",
        "scales_on_input": False,
        "expert_offset": 2,
    }
    rows = tuple(torch.full((30, width), 1) for width in (2, 2, 64, 8))
    out = torch.empty(30, 128, dtype=torch.bfloat16)
    compute(rows, out, **mixture.weights_among(tensors))
    ((x, ids, routing, written, x_scale),) = plan.calls
    assert ids is rows[0]
    assert routing is rows[1]
    assert written is out
    if format == "nvfp4":
        ((packed, scales, factor, wide),) = decoded
        assert (packed is rows[2], scales is rows[3], factor) == (True, True, 2.0)
        assert x is wide
        assert (x.shape, x.dtype, x_scale) == ((30, 128), torch.bfloat16, None)
    else:
        assert not decoded
        assert x is rows[2]
        assert x_scale is rows[3]


class Holding:
    """As much of a problem as is asked for."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __getitem__(self, name):
        return self.tensors[name]
