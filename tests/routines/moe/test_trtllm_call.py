"""What the three calls share: the order of weights, expert by expert, and where the kernels run."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines import all_routines
from flashinfer_perf.routines.moe.flags import ROUTING_METHODS
from flashinfer_perf.routines.moe.layer import Layer
from flashinfer_perf.routines.moe.trtllm_call import METHODS, each_expert, first_rows, first_scales
from flashinfer_perf.run.judge import judge
from flashinfer_perf.run.launch import Copies, poison
from tests.contract import contract
from tests.routines.harness import launch_of
from tests.routines.moe import library
from tests.routines.moe.broken import CASE
from tests.routines.moe.library import unordered

ROUTINES = [name for name in all_routines() if name.startswith("trtllm_")]


def test_experts_are_arranged_one_by_one():
    tensor = torch.arange(3 * 4 * 2).reshape(3, 4, 2)
    seen = []

    def arrange(part):
        seen.append(part)
        return part.flip(0).flatten()

    arranged = each_expert(tensor, arrange)
    assert arranged.tolist() == tensor.flip(1).flatten(1).tolist()
    assert [part.data_ptr() for part in seen] == [part.data_ptr() for part in tensor]


@pytest.mark.parametrize("activation", ["Swiglu", "Relu2"])
def test_first_rows_are_undone_by_the_librarys_tables(activation):
    """Gate and up rows in turn where there is a gate, and shuffled in any case."""
    pytest.importorskip("flashinfer")
    layer = Layer(activation, range(1))
    rows = torch.arange(128 * 3).reshape(128, 3)
    assert torch.equal(unordered(first_rows(layer, rows), 128, layer.gated), rows)
    assert not torch.equal(unordered(first_rows(layer, rows), 128, not layer.gated), rows)


@pytest.mark.parametrize(("activation", "value"), [("Geglu", [14.0, 21.0]), ("Identity", [7.0, 7.0])])
def test_first_scales(activation, value):
    scales = first_scales(Layer(activation, range(2)), torch.tensor([2.0, 3.0]), 7.0)
    assert (scales["gate"].tolist(), scales["value"].tolist()) == ([2.0, 3.0], value)


@pytest.mark.parametrize("name", ROUTINES)
@pytest.mark.parametrize(("capability", "runs"), [((9, 0), False), ((10, 0), True), ((10, 3), True), ((12, 0), False)])
def test_where_they_run(name, capability, runs):
    backend = all_routines()[name].backends["trtllm"]
    (requirement,) = (need for need in backend.requires if need.on_capability)
    assert (requirement.unmet(Machine("cuda:0", "a GPU", capability), None) is None) is runs


@pytest.mark.parametrize(
    ("name", "backend", "kernel", "flags"),
    [
        ("trtllm_fp4_block_scale_moe", "trtllm", library.fp4, "--use_routing_bias"),
        ("trtllm_fp8_block_scale_moe", "trtllm", library.fp8_block, "--use_shuffled_weight --weight_layout 2"),
        ("trtllm_fp8_block_scale_moe", "trtllm", library.fp8_block, ""),
        ("trtllm_fp8_per_tensor_scale_moe", "trtllm", library.fp8_per_tensor, "--routing_method renormalize"),
        ("cutlass_fused_moe", "cutlass", library.cutlass, ""),
        ("cutlass_fused_moe", "cutlass", library.cutlass, "--cutlass_variant fp8"),
        ("cutlass_fused_moe", "cutlass", library.cutlass, "--cutlass_variant nvfp4 --quantized_input"),
    ],
)
def test_a_call_on_copies_reads_no_original(name, backend, kernel, flags):
    with contract(f"flashinfer.fused_moe.{name}", kernel):
        launch, problem = launch_of(name, backend, f"{CASE} {flags}")
        truth = problem.truth()
        copied = launch.on_copies(Copies())
        for tensor in [*problem.tensors.values(), *launch.data()]:
            poison(tensor)
        findings = judge(problem, copied.outputs(copied()), truth)
    assert all(finding.passed for finding in findings), findings


def test_every_method_has_the_librarys_name():
    assert set(METHODS) == set(ROUTING_METHODS)


def test_arrangement_keeps_formats():
    """FP8 rows are moved as they are."""
    experts = torch.arange(2 * 32 * 4, dtype=torch.uint8).reshape(2, 32, 4).view(torch.float8_e4m3fn)
    moved = each_expert(experts, partial(first_rows, Layer("Swiglu", range(2))))
    assert moved.dtype is torch.float8_e4m3fn
    assert torch.equal(moved.view(torch.uint8).flatten(1).sort().values, experts.view(torch.uint8).flatten(1))
