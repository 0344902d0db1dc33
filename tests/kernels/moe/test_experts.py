"""The fused mixture without a GPU: its sums and addresses in Triton's interpreter, and its arguments.

``tests/gpu/test_moe_kernels.py`` asks the same of the compiled kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.kernels.moe import experts as module
from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.kernels.moe.weights import ExpertFormat
from tests.kernels.moe.mixture import Mixture, make

ROOT = Path(__file__).parents[3]
ROUNDINGS = 2 * 2**-9
"""Relative: a product and a sum are rounded to bf16, by 2^-9 at most, and by less than half of that on average. What
else differs is the order of sums, which rounds an intermediate value otherwise once in thousands."""
BF16 = Mixture(ExpertFormat.BF16)


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Relative errors by case."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.moe.interpreted_experts"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_format_activation_and_load_gives_the_mixture(errors):
    broken = {label: error for label, error in errors.items() if label.endswith("broken")}
    assert len(broken) == 4
    assert {label: error for label, error in broken.items() if not error > 0.1} == {}
    sound = {label: error for label, error in errors.items() if label not in broken}
    assert len(sound) == 56
    assert {label: error for label, error in sound.items() if not error < ROUNDINGS} == {}


def plan(mixture: Mixture = BF16, **changed: object) -> TritonExperts:
    made = make(mixture, "cpu")
    options = {"num_tokens": mixture.tokens, "top_k": mixture.top_k, "num_experts": mixture.experts}
    options |= {"dtype": mixture.dtype, "activation": mixture.activation}
    return TritonExperts(made.experts, **options | changed)


SCALE = torch.ones(1)


@pytest.mark.parametrize(
    ("format", "changed", "message"),
    [
        ("16-bit", {"activation": "Tanh"}, "activation is 'Tanh': give one of Swiglu, Geglu"),
        ("16-bit", {"activation": "Relu"}, r"w1 is \(8, 256, 256\).*give \(8, 128, 256\)"),
        ("16-bit", {"dtype": torch.float32}, "dtype is torch.float32: give bfloat16 or float16"),
        ("16-bit", {"dtype": torch.float16}, "dtype is torch.float16 and w1 is torch.bfloat16: give the same"),
        ("16-bit", {"top_k": 9}, "top_k is 9: give 1 to 8"),
        ("16-bit", {"num_tokens": -1}, "num_tokens is -1"),
        ("16-bit", {"expert_offset": 1}, "expert_offset is 1, of 8 experts here and 8 in all: give 0 to 0"),
        ("nvfp4", {"input_scale": SCALE}, "input_scale is given, but nvfp4 has no scale of a whole tensor"),
        ("fp8 128x128 blocks", {"intermediate_scale": SCALE}, "intermediate_scale is given, but fp8 128x128 blocks"),
        ("fp8 per tensor", {"input_scale": torch.ones(2)}, r"input_scale is \(2,\).*give one fp32, \(1,\)"),
    ],
)
def test_what_cannot_be_planned_is_refused(format, changed, message):
    with pytest.raises(ValueError, match=message):
        plan(BF16._replace(format=ExpertFormat(format)), **changed)


def call(mixture: Mixture, **changed: object) -> None:
    made = make(mixture, "cpu")
    operands = {"x": made.x, "topk_ids": made.ids, "topk_weights": made.weights, "out": torch.empty_like(made.x)}
    plan(mixture)(**operands | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(7, 128).bfloat16()}, r"x is \(7, 128\).*give \(7, 256\) of torch.bfloat16"),
        ({"x": torch.zeros(7, 256).to(torch.float8_e4m3fn)}, "x is .*float8_e4m3fn: give .* of torch.bfloat16, cont"),
        ({"topk_ids": torch.zeros(7, 3)}, "topk_ids is .* of torch.float32: give .* of torch.int32"),
        ({"topk_weights": torch.zeros(3, 7).T}, "topk_weights is .* contiguous"),
        ({"out": torch.zeros(7, 256)}, "out is .* of torch.float32"),
    ],
)
def test_what_cannot_be_called_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        call(BF16, **changed)


@pytest.mark.parametrize(("scale", "found"), [(None, "missing"), (torch.ones(7, 1), r"\(7, 1\) of torch.float32")])
def test_quantised_input_needs_its_scale(monkeypatch, scale, found):
    monkeypatch.setattr(module, "prepare", {(1,): lambda *args, **options: None})
    x = torch.zeros(7, 256).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=f"x_scale is {found}: .* give \\(7, 2\\) of fp32"):
        call(BF16._replace(format=ExpertFormat.FP8_BLOCK), x=x, x_scale=scale)


def test_no_tokens_are_no_work():
    made = make(BF16, "cpu")
    plan(num_tokens=0)(made.x[:0], made.ids[:0], made.weights[:0], made.x[:0])


def test_a_gpu_older_than_ada_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(Unsupported, match=r"compute capability 8\.6 converts no FP8 in hardware; needs 8\.9"):
        module._capability(torch.device("cuda"))


def test_a_call_allocates_nothing_and_starts_few_kernels(monkeypatch):
    """Four where nothing is to be quantised again."""
    started = []
    record = lambda name: type("Kernel", (), {"__getitem__": lambda self, grid: lambda *a, **o: started.append(name)})  # noqa: E731
    for name in ("prepare", "first_product", "second_product", "reduce_pairs"):
        monkeypatch.setattr(module, name, record(name)())
    made, run, out = make(BF16, "cpu"), plan(), torch.empty(7, 256, dtype=torch.bfloat16)
    with monkeypatch.context() as forbidden:
        for name in ("empty", "zeros", "full", "empty_like", "zeros_like"):
            forbidden.setattr(torch, name, None)
        run(made.x, made.ids, made.weights, out)
    assert started == ["prepare", "first_product", "second_product", "reduce_pairs"]
