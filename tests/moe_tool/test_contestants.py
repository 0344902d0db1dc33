from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.moe_tool import eager
from flashinfer_perf.moe_tool.cases import CONTESTANTS
from flashinfer_perf.routines import all_routines
from tests.cli.conftest import ROOT
from tests.moe_tool.layers import CPU, HOPPER, contestants, made, passes, passes_on_copies

NAMES = list(contestants())


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_is_right(name):
    flags, problem, routine = contestants()[name](CPU)
    launch = routine.backends["torch"].prepare(flags, problem)
    assert launch.host_sync
    launch()
    assert passes(problem, launch)
    assert passes_on_copies(problem, launch)


def test_this_projects_kernels_are_right_with_routing_weights_only():
    command = [sys.executable, "-m", "tests.moe_tool.interpreted"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        **dict.fromkeys([*NAMES, *(f"{name}, on copies" for name in NAMES), "moe_fp4"], True),
        **dict.fromkeys([f"{name}, without routing weights" for name in NAMES], False),
    }


def spoil(problem, how):
    """Inputs of a kernel that has one thing wrong."""
    tensors = dict(problem.tensors)
    HOW[how](tensors)
    return tensors


def exchange_halves(tensors):
    tensors["w1"] = torch.cat(tensors["w1"].chunk(2, dim=1)[::-1], dim=1)
    if tensors["w1_scale"].ndim > 1:
        tensors["w1_scale"] = torch.cat(tensors["w1_scale"].chunk(2, dim=1)[::-1], dim=1)


def change(name, function):
    return lambda tensors: tensors.update({name: function(tensors[name])})


HOW = {
    "zeros": change("x", torch.zeros_like),
    "NaN in a token": change("x", lambda x: torch.where(torch.arange(len(x))[:, None] == 3, torch.nan, x)),
    "up for gate": exchange_halves,
    "no routing weights": change("weights", torch.ones_like),
    "another's expert": change("experts", lambda ids: ids.roll(1, 0)),
    "the next expert": change("experts", lambda ids: (ids + 1) % 6),
    "a token dropped": change("weights", lambda w: torch.where(torch.arange(len(w))[:, None] == 3, 0.0, w)),
    "one expert's weight twice": change("w2_scale", lambda scale: scale.roll(1, 0)),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_is_caught(name, how):
    flags, problem, routine = contestants()[name](CPU)
    launch = routine.backends["torch"].prepare(flags, problem)
    changed = spoil(problem, how)
    replace(launch, kwargs={**launch.kwargs, **changed})()
    assert not passes(problem, launch)


@pytest.mark.parametrize("how", ["up for gate", "no routing weights", "the next expert", "a token dropped"])
def test_the_tolerance_of_quantised_activations_catches_them_too(how):
    """That of NVFP4, for kernels that no machine of ours runs."""
    flags, problem, routine = made(1)
    launch = routine.backends["torch"].prepare(flags, problem)
    _, coarse, _ = made(1, replace(HOPPER, compute_capability=(10, 0)))
    launch()
    assert passes(coarse, launch)
    replace(launch, kwargs={**launch.kwargs, **spoil(problem, how)})()
    assert not passes(coarse, launch)


def test_per_token_and_per_channel_scales_really_differ():
    outputs = {}
    for name in NAMES[1:]:
        flags, problem, routine = contestants()[name](CPU)
        launch = routine.backends["torch"].prepare(flags, problem)
        launch()
        outputs[name] = launch.kwargs["output"]
        assert problem["w1_scale"].shape == ((6, 256) if flags.per_out_ch else (6,))
    for name, output in outputs.items():
        assert sum(torch.equal(output, other) for other in outputs.values()) == 1, name


def test_scales_of_activations_are_of_the_call_or_of_each_token():
    values = torch.tensor([[1.0, 448.0], [0.001, 0.01]])
    assert torch.equal(eager._rounded_to_fp8(values, per_token=True)[1, 1], torch.tensor(0.01))
    assert not torch.equal(eager._rounded_to_fp8(values, per_token=False)[1, 1], torch.tensor(0.01))


@pytest.mark.parametrize("number", [0, 1])
def test_inputs_are_as_described(number):
    flags, problem, _ = made(number)
    packed = 2 if flags.weight_dtype is DType.NVFP4 else 1
    assert problem["x"].dtype is torch.float16
    assert problem["x"].shape == (9, 128)
    assert problem["w1"].shape == (6, 256, 128 // packed)
    assert problem["w2"].shape == (6, 128, 128 // packed)
    assert problem["experts"].shape == problem["weights"].shape == (9, 2)
    assert torch.allclose(problem["weights"].sum(-1), torch.ones(9))
    assert problem.work.flops == 9 * 2 * 6 * 128 * 128


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.routine.name)
def test_no_list_shows_the_contestants(contestant):
    assert contestant.routine.name not in all_routines()


@pytest.mark.parametrize(("changes", "part"), [({"top_k": 7}, "top_k (7) exceeds num_experts (6)"), ({"n": 24}, "24")])
def test_what_cannot_be_is_refused(changes, part):
    contestant = CONTESTANTS[0]
    flags, _, _ = made(0)
    names = {"n": "intermediate_size"}
    with pytest.raises(InvalidInput, match=part.replace("(", r"\(").replace(")", r"\)")):
        contestant.routine.check_rules(replace(flags, **{names.get(name, name): v for name, v in changes.items()}))
