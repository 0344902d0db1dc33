"""FlashInfer's kernels between the exchanges: what they are given, judged by their mathematics; and when they run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines.moe_comm import library, moe_a2a_dispatch_combine
from flashinfer_perf.routines.moe_comm.mixture import allowed
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS
from tests.contract import contract
from tests.routines.moe import library as emulated
from tests.routines.moe_comm.ranks import Rank
from tests.routines.moe_comm.test_mixture import FORMATS, local
from tests.routines.moe_comm.test_traffic import flags_of

pytest.importorskip("flashinfer", reason="flashinfer is not installed: it comes with the extra 'flashinfer'")

SIZES = {"hidden_size": 256, "intermediate_size": 128, "num_experts": 12, "top_k": 2, "num_tokens": 10}
KERNELS = {
    "nvfp4": ("flashinfer.fused_moe.trtllm_fp4_block_scale_routed_moe", emulated.fp4),
    "fp8_block_scale": ("flashinfer.fused_moe.trtllm_fp8_block_scale_routed_moe", emulated.fp8_block),
}
RANKS = 3


def case_of(format, **changes):
    return flags_of(**{**SIZES, **changes}, quant_dtype=format, real_math=True)


def arrived(format):
    """Ten slots of a payload, the first of them without a token; and the factor in it."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, SIZES["hidden_size"], generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(12, generator=generator)[:2] for _ in range(10)]).int()
    ids[0] = 12
    wire = WIRE_FORMATS[format]
    factor = wire.factor(float(hidden.abs().amax()))
    payload = wire.encode(hidden, factor)
    return (ids, torch.rand(10, 2, generator=generator), *payload), wire.decode(payload, factor), factor


def answered(format, rows, factor, **spoilt):
    """What the experts of all ranks make of the rows, added up."""
    case, total = case_of(format), torch.zeros(10, SIZES["hidden_size"])
    name, kernel = KERNELS[format]
    for rank in range(RANKS):
        experts = local(case, rank, RANKS)
        problem = SimpleNamespace(tensors=experts.draw(), ranks=Rank(rank, RANKS))
        with contract(name, kernel):
            compute = library.ByLibrary(case, problem, factor, experts.numbers)
            out = torch.empty(10, SIZES["hidden_size"], dtype=torch.bfloat16)
            compute(rows, out, **{**compute.weights, **spoilt})
        total += out.float()
    return total


@pytest.mark.parametrize("format", FORMATS)
def test_the_ranks_sums_make_up_the_truth(format):
    rows, decoded, factor = arrived(format)
    total = answered(format, rows, factor)
    assert torch.equal(total[0], torch.zeros(SIZES["hidden_size"]))
    case = case_of(format)
    truth = local(case, 1, RANKS).truth(decoded[1:], rows[0][1:], rows[1][1:])
    check = allowed(case, RANKS, by_library=True)
    assert check.judge("out", {"out": total[1:].bfloat16()}, {"out": truth}).passed
    assert not check.judge("out", {"out": total[:-1].bfloat16()}, {"out": truth}).passed, "a token's neighbour"


def test_the_factor_of_hidden_states_matters():
    rows, decoded, factor = arrived("nvfp4")
    truth = local(case_of("nvfp4"), 1, RANKS).truth(decoded[1:], rows[0][1:], rows[1][1:])
    wrong = answered("nvfp4", rows, 2 * factor)[1:].bfloat16()
    assert not allowed(case_of("nvfp4"), RANKS, by_library=True).judge("out", {"out": wrong}, {"out": truth}).passed


@pytest.mark.parametrize("format", FORMATS)
def test_weights_of_other_experts_are_noticed(format):
    rows, decoded, factor = arrived(format)
    case = case_of(format)
    truth = local(case, 1, RANKS).truth(decoded[1:], rows[0][1:], rows[1][1:])
    experts = local(case, 0, RANKS)
    problem = SimpleNamespace(tensors=experts.draw(), ranks=Rank(0, RANKS))
    other = library.ByLibrary(case, problem, factor, experts.numbers).weights["w2"].roll(1, 0)
    total = answered(format, rows, factor, w2=other)
    check = allowed(case, RANKS, by_library=True)
    assert not check.judge("out", {"out": total[1:].bfloat16()}, {"out": truth}).passed


@pytest.mark.parametrize(
    ("capability", "changes", "expected"),
    [
        ((10, 0), {}, True),
        ((10, 3), {}, True),
        ((9, 0), {}, False),
        ((12, 0), {}, False),
        ((10, 0), {"intermediate_size": 192}, False),
        ((10, 0), {"hidden_size": 192}, False),
        ((10, 0), {"num_experts": 6}, False),
        ((10, 0), {"top_k": 12}, False),
        ((10, 0), {"num_experts": 2052}, False),
    ],
)
def test_where_the_kernels_run(capability, changes, expected):
    machine = Machine("cuda:0", "fake", capability)
    assert library.runs(case_of("nvfp4", **changes), machine) is expected


def test_on_a_cpu_they_do_not():
    assert not library.runs(case_of("nvfp4"), Machine("cpu", "cpu"))


@pytest.mark.parametrize("runs", [True, False])
def test_an_exchange_takes_them_where_they_run(runs, monkeypatch):
    """And this project's kernels elsewhere; the record says whose."""
    kernels = {"trtllm": (library, "ByLibrary"), "triton": (moe_a2a_dispatch_combine, "ByTriton")}
    for name, (module, cls) in kernels.items():
        monkeypatch.setattr(module, cls, lambda *_, name=name, **__: SimpleNamespace(name=name, weights={"w1": name}))
    monkeypatch.setattr(library, "runs", lambda case, machine: runs)
    taken = {}
    monkeypatch.setattr(
        moe_a2a_dispatch_combine, "launch_over", lambda case, problem, *_, by: taken.update(by=by, **problem.tensors)
    )
    monkeypatch.setattr(moe_a2a_dispatch_combine, "replace", lambda problem, tensors: SimpleNamespace(tensors=tensors))
    problem = Tensors(factor=torch.ones(1), weights=torch.ones(1))
    moe_a2a_dispatch_combine._with_kernels(case_of("nvfp4"), problem, None)
    assert (taken["by"], taken["w1"]) == (("trtllm", "trtllm") if runs else ("triton", "triton"))


class Tensors(dict):
    """A problem, as far as choosing kernels asks for it."""

    ranks = Rank(0, 2)

    @property
    def tensors(self):
        return dict(self)
