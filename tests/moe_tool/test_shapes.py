from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.moe_tool.flags import ToolFlags
from flashinfer_perf.moe_tool.presets import PRESETS, listed
from flashinfer_perf.moe_tool.shapes import selected


def shapes(**flags):
    return selected(build(ToolFlags, specs_of(ToolFlags), flags))


def test_by_default_deepseek_r1_fp4_at_ten_batch_sizes_on_one_rank():
    found = shapes()
    assert [shape.m for shape in found] == [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert {(s.model, s.experts, s.top_k, s.k, s.n, s.tp_size) for s in found} == {
        ("nvidia/DeepSeek-R1-FP4", 256, 8, 2048, 7168, 1)
    }
    assert not any(shape.per_act_token or shape.per_out_ch for shape in found)


def test_the_documented_filters_select_the_default_model():
    assert shapes(limit_k=(2048,), limit_n=(7168,)) == shapes()


def test_n_is_divided_by_the_ranks_before_it_is_filtered():
    found = shapes(tp_sizes=(1, 2, 4, 8), limit_n=(1792, 896), batch_sizes=(128, 512))
    assert [(shape.tp_size, shape.n, shape.m) for shape in found] == [
        (4, 1792, 128),
        (4, 1792, 512),
        (8, 896, 128),
        (8, 896, 512),
    ]


def test_the_number_of_experts_is_a_filter():
    found = shapes(models=tuple(PRESETS), limit_num_groups=(128,), batch_sizes=(1,))
    assert [shape.model for shape in found] == [
        "Qwen/Qwen3-235B-A22B",
        "meta-llama/Llama-4-Maverick",
        "openai/gpt-oss-120b",
    ]


def test_configurations_of_the_fp8_contestant():
    found = shapes(limit_per_act_token=(0, 1), limit_per_out_ch=(1,), batch_sizes=(4,))
    assert [(shape.per_act_token, shape.per_out_ch) for shape in found] == [(False, True), (True, True)]


@pytest.mark.parametrize("flags", [{"limit_k": (7168,)}, {"limit_n": (3584,)}, {"limit_num_groups": (8, 16)}])
def test_a_filter_that_leaves_nothing_is_an_error_that_says_what_there_is(flags):
    ((name, values),) = flags.items()
    with pytest.raises(InvalidInput) as refusal:
        shapes(**flags)
    option = f"--{name.replace('_', '-')} {' '.join(map(str, values))}"
    assert str(refusal.value) == (
        f"no shape is left by {option}; without filters there are "
        "nvidia/DeepSeek-R1-FP4: 256 experts, k = 2048, n = 7168 (TP 1)"
    )


def test_ranks_that_do_not_divide_n_are_refused():
    with pytest.raises(InvalidInput, match="n = 7168 of nvidia/DeepSeek-R1-FP4 cannot be divided among 3 ranks"):
        shapes(tp_sizes=(1, 3))


@pytest.mark.parametrize(
    ("model", "sizes"),
    {
        "nvidia/DeepSeek-R1-FP4": (256, 8, 2048, 7168),
        "deepseek-ai/DeepSeek-R1": (256, 8, 7168, 2048),
        "mistralai/Mixtral-8x7B": (8, 2, 4096, 14336),
        "Qwen/Qwen3-235B-A22B": (128, 8, 4096, 1536),
        "meta-llama/Llama-4-Maverick": (128, 1, 5120, 8192),
        "moonshotai/Kimi-K2": (384, 8, 7168, 2048),
        "openai/gpt-oss-120b": (128, 4, 2880, 2880),
    }.items(),
)
def test_presets(model, sizes):
    preset = PRESETS[model]
    assert (preset.experts, preset.top_k, preset.k, preset.n) == sizes
    assert f"{model}: {sizes[0]} experts, top {sizes[1]}, k = {sizes[2]}, n = {sizes[3]}" in listed()
    assert preset.k % 64 == preset.n % 64 == 0  # what every kernel takes
