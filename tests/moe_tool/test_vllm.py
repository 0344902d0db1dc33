"""vLLM is not installed where the tests run. A stand-in has its documented modules, functions and parameters."""

from __future__ import annotations

import contextlib
import inspect
import sys
import types

import pytest
import torch

from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.moe_tool import call as ours
from flashinfer_perf.moe_tool import vllm
from flashinfer_perf.moe_tool.cases import CONTESTANTS
from tests.moe_tool.layers import BLACKWELL, HOPPER, made, passes

LAYERS = "vllm.model_executor.layers.fused_moe"


class Library:
    """What was called; each function has the documented parameters and no others."""

    def __init__(self):
        self.calls, self.configurations = {}, []

    def fused_experts(self, hidden_states, w1, w2, topk_weights, topk_ids, quant_config):
        self.calls["fused_experts"] = dict(locals())
        return torch.zeros_like(hidden_states)

    def fp8_w8a8_moe_quant_config(
        self, w1_scale, w2_scale, a1_scale=None, a2_scale=None, per_act_token_quant=False, per_out_ch_quant=False
    ):
        self.calls["config"] = dict(locals())
        return "an FP8 configuration"

    def nvfp4_moe_quant_config(self, a1_gscale, a2_gscale, w1_scale, w2_scale, g1_alphas, g2_alphas):
        arguments = {name: value for name, value in locals().items() if name != "self"}
        return ours.nvfp4_moe_quant_config(**arguments)

    def cutlass_moe_fp4(self, a, w1_fp4, w2_fp4, topk_weights, topk_ids, m, n, k, e, quant_config):
        """Computes it, by the function of ours that reads the same arguments."""
        self.calls["cutlass_moe_fp4"] = arguments = {name: v for name, v in locals().items() if name != "self"}
        return ours.moe_fp4(**arguments)

    @contextlib.contextmanager
    def set_current_vllm_config(self, configuration):
        self.configurations.append(configuration)
        yield
        self.configurations.append("left")


@pytest.fixture
def library(monkeypatch):
    found = Library()
    config = ("set_current_vllm_config",)
    contents = {
        "vllm.config": config,
        f"{LAYERS}.config": ("fp8_w8a8_moe_quant_config", "nvfp4_moe_quant_config"),
        f"{LAYERS}.fused_moe": ("fused_experts",),
        f"{LAYERS}.cutlass_moe": ("cutlass_moe_fp4",),
    }
    for parent in ("vllm", "vllm.model_executor", "vllm.model_executor.layers", LAYERS):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    for name, functions in contents.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function, getattr(found, function))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm.config"].ParallelConfig = lambda pipeline_parallel_size: pipeline_parallel_size
    sys.modules["vllm.config"].VllmConfig = lambda parallel_config: parallel_config
    return found


def test_cutlass_gets_weights_and_scales_in_its_order_and_is_right(library):
    flags, problem, routine = made(1, BLACKWELL, n=192)
    launch = routine.backends["vllm"].prepare(flags, problem)
    output = launch()
    assert passes(problem, launch, output)
    call = library.calls["cutlass_moe_fp4"]
    assert (call["m"], call["n"], call["k"], call["e"]) == (9, 192, 128, 6)
    assert torch.equal(call["w1_fp4"][2], torch.cat((problem["w1"][2, 192:], problem["w1"][2, :192])))
    assert call["w2_fp4"] is problem["w2"]
    scales = call["quant_config"].w2_scale
    assert (scales.shape, scales.dtype) == ((6, 128, 12), torch.float8_e4m3fn)
    assert torch.equal(scales[3].view(torch.uint8), swizzle_128x4(problem["w2_scale"][3]))
    assert call["quant_config"].a1_gscale.shape == (6,)


def test_a_wrong_order_would_be_noticed(library, monkeypatch):
    monkeypatch.setattr(vllm, "exchanged", lambda weight: weight)
    flags, problem, routine = made(1, BLACKWELL)
    launch = routine.backends["vllm"].prepare(flags, problem)
    assert not passes(problem, launch, launch())


@pytest.mark.parametrize("both", [False, True])
def test_triton_gets_one_scale_each_or_one_per_token_and_channel(library, both):
    flags, problem, routine = made(0, HOPPER, per_act_token=both, per_out_ch=both)
    launch = routine.backends["vllm"].prepare(flags, problem)
    assert not passes(problem, launch, launch())  # the stand-in gives zeros
    call, config = library.calls["fused_experts"], library.calls["config"]
    assert call["quant_config"] == "an FP8 configuration"
    assert call["hidden_states"] is problem["x"]
    assert (call["topk_ids"].dtype, call["topk_weights"].dtype) == (torch.int32, torch.float32)
    upper, lower = problem["w1"].view(torch.uint8).chunk(2, dim=1)
    assert torch.equal(call["w1"].view(torch.uint8), torch.cat((lower, upper), dim=1))
    assert (config["per_act_token_quant"], config["per_out_ch_quant"]) == (both, both)
    assert config["a1_scale"] is config["a2_scale"] is None  # found in the call
    assert config["w1_scale"].shape == ((6, 256, 1) if both else (6,))
    if both:
        assert torch.equal(config["w1_scale"][1, :128, 0], problem["w1_scale"][1, 128:])


def test_around_it_all_is_the_configuration_of_one_process(library):
    for contestant in CONTESTANTS:
        library.configurations.clear()
        with contestant.routine.backends["vllm"].state():
            assert library.configurations == [1]
        assert library.configurations == [1, "left"]


def test_the_stand_in_is_not_more_generous_than_what_is_documented():
    parameters = list(inspect.signature(Library().cutlass_moe_fp4).parameters)
    assert parameters == list(inspect.signature(ours.moe_fp4).parameters)


def test_without_vllm_the_reason_says_how_to_get_it():
    flags, _, routine = made(0, HOPPER)
    requirement, reason = routine.backends["vllm"].unmet(HOPPER, flags)
    assert requirement.on_package
    assert reason == "vllm is not installed; install it with: pip install vllm"
