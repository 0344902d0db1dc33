"""allreduce_fusion on one rank; on several: ``moe_comm/test_several_ranks.py``, whose starts of mpirun it shares."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines.allreduce_comm import library
from flashinfer_perf.routines.allreduce_comm.allreduce_fusion import all_reduce, in_place
from flashinfer_perf.run.factory import TensorFactory
from tests.contract import contract, covers
from tests.routines.allreduce_comm.broken import ON_ONE_RANK, prepare_with
from tests.routines.harness import GIBIBYTE, assert_caught, assert_passes, case_of, problem_of, run, run_broken
from tests.routines.moe_comm.ranks import Rank

NAME = "allreduce_fusion"
CASE = "--num_tokens 8 --hidden_size 128"
NORM = f"{CASE} --pattern ar_residual_rmsnorm"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("flags", [CASE, NORM, f"{NORM} --eps 0.1", "--num_tokens 1 --hidden_size 64"])
def test_gloo_passes(flags, dtype):
    assert_passes(run(NAME, f"{flags} --input_dtype {dtype}", "gloo"))


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_a_broken_reduction_is_caught(name):
    assert_caught(run_broken(NAME, prepare_with(ON_ONE_RANK[name]), NORM))


@pytest.mark.parametrize(("size", "flags", "nothing"), [(1, CASE, True), (1, NORM, False), (2, CASE, False)])
def test_a_sum_of_one_rank_is_not_left_to_a_clock_that_records_kernels(size, flags, nothing):
    problem = problem_on(0, size, flags)
    launch = in_place(case_of(NAME, flags).flags, problem, None)
    assert bool(launch.no_cupti) == bool(launch.no_graph) == nothing


def problem_on(rank: int, size: int, flags: str = NORM):
    return all_reduce.make(case_of(NAME, flags).flags, TensorFactory("cpu", 42, GIBIBYTE, Rank(rank, size)))


def test_the_truth_is_the_sum_of_what_the_ranks_have():
    problems = [problem_on(rank, 3, CASE) for rank in range(3)]
    total = sum(problem["input"].double() for problem in problems)
    for problem in problems:
        assert torch.equal(problem.truth()["output"], total)


def test_ranks_share_residual_and_weight():
    one, other = problem_on(0, 2), problem_on(1, 2)
    assert not torch.equal(one["input"], other["input"])
    for name in ("residual", "weight"):
        assert torch.equal(one[name], other[name])
    truth = one.truth()
    carried = one["input"].double() + other["input"].double() + one["residual"].double()
    torch.testing.assert_close(truth["residual_out"], carried)
    rms = (carried.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(truth["norm_out"], carried / rms * one["weight"].double())


@pytest.mark.parametrize(("ranks", "bytes"), [(1, 0), (2, 2048), (4, 3072)])
def test_the_bandwidth_is_that_of_the_bus(ranks, bytes):
    """2 (n - 1) / n of the tensor, as in NCCL's tests."""
    assert problem_on(0, ranks, CASE).work.bytes == bytes


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("flags", [CASE, NORM])
def test_a_rank_that_is_left_out_shows_and_roundings_do_not(size, flags):
    problem = problem_on(0, size, flags)
    truth = problem.truth()
    for name, check in problem.checks.items():
        rounded = {name: truth[name].bfloat16()}
        assert check.judge(name, rounded, truth).passed
    (name, *_), inputs = problem.checks, problem["input"]
    assert not problem.checks[name].judge(name, {name: (truth[name] - inputs.double()).bfloat16()}, truth).passed


# ---- FlashInfer ----


def make_workspace() -> Any:
    """One that knows only whether it was destroyed."""
    base = pytest.importorskip("flashinfer").comm.workspace_base.AllReduceFusionWorkspace
    members = dict.fromkeys(base.__abstractmethods__) | {"destroy": lambda self: vars(self).update(_destroyed=True)}
    kind = type("Workspace", (base,), members)
    workspace = kind.__new__(kind)
    workspace._destroyed = False
    return workspace


def launched(monkeypatch, flags: str, backend: str):
    """A launch on the first of two ranks, with a workspace that is none."""
    import flashinfer

    workspace = make_workspace()
    problem = dataclasses.replace(problem_on(0, 2, flags), ranks=Rank(0, 2))
    monkeypatch.setattr(library, "_workspace", lambda comm, case, problem: workspace)
    assert flashinfer.comm
    return all_reduce.backends[backend].prepare(case_of(NAME, flags).flags, problem), problem, workspace


def result_of(output=None, norm_out=None, **_):
    return output if norm_out is None else norm_out


@covers(NAME, "trtllm_oneshot", "trtllm_twoshot")
@pytest.mark.parametrize(("backend", "one"), [("trtllm_oneshot", True), ("trtllm_twoshot", False)])
@pytest.mark.parametrize("flags", [f"{CASE} --enable_pdl", f"{NORM} --eps 0.1"])
def test_the_librarys_call(monkeypatch, backend, one, flags):
    pytest.importorskip("flashinfer")
    with contract("flashinfer.comm.allreduce_fusion", result_of) as kernel:
        launch, problem, workspace = launched(monkeypatch, flags, backend)
        launch()
        workspace.destroy()
        call = kernel.call
        assert (call["workspace"], call["use_oneshot"], call["fp32_acc"]) == (workspace, one, True)
        assert call["input"] is problem["input"]
        assert call["launch_with_pdl"] is ("pdl" in flags)
        assert set(launch.outputs(None)) == set(problem.checks)
        assert call["pattern"] == (0 if flags.split(" --enable")[0] == CASE else 1)
        if call["pattern"]:
            assert (call["residual_in"], call["rms_gamma"]) == (problem["residual"], problem["weight"])
            assert call["rms_eps"] == 0.1


def test_patterns_are_numbered_as_the_library_does():
    comm = pytest.importorskip("flashinfer").comm
    assert comm.AllReduceFusionPattern.kAllReduce == library.PLAIN
    assert comm.AllReduceFusionPattern.kARResidualRMSNorm == library.RESIDUAL_RMS_NORM


def test_the_librarys_workspace(monkeypatch):
    comm = pytest.importorskip("flashinfer").comm
    from flashinfer.comm import comm_backend

    monkeypatch.setattr(library, "join_process_group", lambda ranks: None)
    monkeypatch.setattr(comm_backend.TorchDistBackend, "__init__", lambda self: None)
    workspace, problem = make_workspace(), problem_on(1, 2)
    problem = dataclasses.replace(problem, ranks=Rank(1, 2))
    creation = contract("flashinfer.comm.create_allreduce_fusion_workspace", lambda **_: workspace)
    with creation as create, library.workspaces_destroyed():
        assert library._workspace(comm, case_of(NAME, NORM).flags, problem) is workspace
        assert not workspace._destroyed
    assert workspace._destroyed
    call = create.call
    assert (call["backend"], call["world_size"], call["rank"], call["gpus_per_node"]) == ("trtllm", 2, 1, 2)
    assert (call["max_token_num"], call["hidden_dim"], call["dtype"]) == (8, 128, torch.bfloat16)
    assert call["force_oneshot_support"]


def test_what_the_library_cannot_do_is_said():
    case, problem = problem_of(NAME, CASE)
    with pytest.raises(Unsupported, match="several ranks; start it with mpirun"):
        library.fused_all_reduce(None, case, problem, oneshot=True)
    two = dataclasses.replace(problem, ranks=Rank(0, 8))
    with pytest.raises(Unsupported, match=r"more tokens \(8\) than ranks \(8\)"):
        library.fused_all_reduce(None, case, two, oneshot=False)
    cpu = Machine("cpu", "cpu")
    refused = {name: backend.unmet(cpu, case) for name, backend in all_reduce.backends.items()}
    assert [name for name, why in refused.items() if why is None] == ["gloo"]
