"""Routing without a GPU: its choices in Triton's interpreter, and its arguments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

import triton
import triton.language as tl
from triton.compiler import ASTSource

from flashinfer_perf.kernels.moe.routing import METHODS, TritonRouting
from tests.kernels.moe.compiling import Offline, compile_instead
from tests.kernels.moe.routed import cases

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def faults() -> dict[str, str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.moe.interpreted_routing"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout)


def test_every_method_chooses_the_experts_and_their_weights(faults):
    assert faults.pop("hidden") == [], "what is no number must stay so"
    assert "experts of token 0" in faults.pop("broken")
    assert faults == dict.fromkeys(cases(), "")


def forgotten_indices(ttgir: str) -> list[str]:
    """Reductions of a value with its index, of which one is in another order than the other: the compiler's mistake."""
    reordered = set(re.findall(r"(%\w+) = tt\.reshape .*allow_reorder", ttgir))
    pairs = re.findall(r'"tt\.reduce"\((%\w+), (%\w+)\)', ttgir)
    return [value for value, index in pairs if (value in reordered) != (index in reordered)]


@triton.jit
def _flat_argmax(x, out):
    value = tl.load(x + tl.arange(0, 1)[:, None] * 128 + tl.arange(0, 128)[None, :])
    tl.store(out, tl.argmax(value.reshape(128), axis=0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("experts", "top_k"), [(128, 1), (256, 8)])
def test_no_index_is_parted_from_its_score(method, experts, top_k, monkeypatch):
    """Seen on a GPU only: the interpreter reorders nothing."""
    found = compile_instead(monkeypatch, (9, 0))
    logits, ids, weights = torch.zeros(2, experts), torch.zeros(2, top_k, dtype=torch.int32), torch.zeros(2, top_k)
    TritonRouting(method, num_experts=experts, top_k=top_k)(logits, None, ids, weights)
    assert forgotten_indices(found["route"].asm["ttgir"]) == []


def test_an_index_that_is_parted_from_its_score_is_found():
    source = ASTSource(_flat_argmax, {"x": "*fp32", "out": "*i32"}, {})
    assert forgotten_indices(triton.compile(source, target=Offline((9, 0)).target).asm["ttgir"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "random"}, "method is 'random': give one of renormalize, deepseek_v3"),
        ({"top_k": 9}, "top_k is 9: give 1 to 8"),
        ({"method": "topk"}, "n_group is 4 and topk_group 2: topk has no groups, leave them out"),
        ({"n_group": 3}, "n_group is 3: give a divisor of 8"),
        ({"topk_group": 5}, "topk_group is 5: give at most 4"),
        ({"topk_group": 1, "top_k": 3}, "topk_group is 1: .* as many as 3 experts need of 2 each"),
    ],
)
def test_what_cannot_be_chosen_is_refused(changed, message):
    options = {"method": "deepseek_v3", "num_experts": 8, "top_k": 2, "n_group": 4, "topk_group": 2}
    with pytest.raises(ValueError, match=message):
        TritonRouting(**options | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(5, 7)}, r"logits is \(5, 7\).*give \(5, 8\) of floats"),
        ({"bias": torch.zeros(7)}, r"bias is \(7,\).*give \(8,\)"),
        ({"topk_ids": torch.zeros(5, 2, dtype=torch.int64)}, "topk_ids is .* of torch.int64: give .* of torch.int32"),
        ({"topk_weights": torch.zeros(2, 5).T}, "topk_weights is .*contiguous"),
    ],
)
def test_what_cannot_be_called_is_refused(changed, message):
    call = {"logits": torch.zeros(5, 8), "bias": None}
    call |= {"topk_ids": torch.zeros(5, 2, dtype=torch.int32), "topk_weights": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match=message):
        TritonRouting("deepseek_v3", num_experts=8, top_k=2)(**call | changed)
