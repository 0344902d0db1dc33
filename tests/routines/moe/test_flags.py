"""The family's flags: spellings, defaults and what they stand for."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.routines.moe.flags import ACTIVATIONS, activation_of, is_gated, local_experts
from tests.routines.harness import case_of

NAME = "trtllm_fp8_per_tensor_scale_moe"
CASE = "--num_tokens 1 --hidden_size 32 --intermediate_size 32 --num_experts 8 --top_k 2"


def flags_of(more=""):
    return case_of(NAME, f"{CASE} {more}").flags


@pytest.mark.parametrize(
    ("typed", "activation"),
    [
        ("", "Swiglu"),
        ("--activation-type geglu", "Geglu"),
        ("--activation_type RELU2", "Relu2"),
        ("--gated_act geglu", "Geglu"),
        ("--gated_act swiglu", "Swiglu"),
        ("--gated_act geglu --activation-type GeGlu", "Geglu"),
    ],
)
def test_activations_have_two_flags(typed, activation):
    assert activation_of(flags_of(typed)) == activation


def test_gated_ones():
    gated = {name for name in ACTIVATIONS if is_gated(flags_of(f"--activation-type {name}"))}
    assert gated == {"Swiglu", "Geglu", "SwigluBias"}


def test_gatedness_is_the_librarys():
    enums = pytest.importorskip("flashinfer.tllm_enums")
    for name in ACTIVATIONS:
        assert enums.ActivationType[name].is_gated is is_gated(flags_of(f"--activation-type {name}"))


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("", range(8)),
        ("--local_num_experts 0", range(8)),
        ("--local_expert_offset 5", range(5, 8)),
        ("--local_expert_offset 3 --local_num_experts 2", range(3, 5)),
    ],
)
def test_local_experts(typed, here):
    assert local_experts(flags_of(typed)) == here


@pytest.mark.parametrize("typed", ["--gated_act relu", "--top_k 0", "--routing_method softmax"])
def test_bad_values(typed):
    with pytest.raises(InvalidInput):
        flags_of(typed)
