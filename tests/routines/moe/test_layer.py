"""The mixture's mathematics, against a loop over tokens in fp64 and against torch's activations."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines.moe.flags import ACTIVATIONS, GATED
from flashinfer_perf.routines.moe.layer import Layer, activate, mixture

FUNCTIONAL = torch.nn.functional
KNOWN = {
    "Gelu": FUNCTIONAL.gelu,
    "Relu": FUNCTIONAL.relu,
    "Silu": FUNCTIONAL.silu,
    "Relu2": lambda values: FUNCTIONAL.relu(values) ** 2,
    "Identity": lambda values: values,
    "Swiglu": FUNCTIONAL.silu,
    "SwigluBias": FUNCTIONAL.silu,
    "Geglu": FUNCTIONAL.gelu,
}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    """Gated ones multiply their first half by a function of the second."""
    values = drawn(5, 8)
    expected = values[:, :4] * KNOWN[name](values[:, 4:]) if name in GATED else KNOWN[name](values)
    assert torch.allclose(activate(name, values), expected, atol=1e-6)


def test_swiglu_bias_has_the_librarys_defaults():
    enums = pytest.importorskip("flashinfer.tllm_enums")
    assert (enums.DEFAULT_SWIGLU_ALPHA, enums.DEFAULT_SWIGLU_BETA) == (1.0, 0.0)
    assert torch.finfo(torch.float32).max == enums.DEFAULT_SWIGLU_LIMIT


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("experts", [range(6), range(2, 5)])
def test_the_mixture_is_the_sum_over_a_tokens_experts(on_input, experts):
    x, w1, w2 = drawn(7, 16), drawn(6, 24, 16), drawn(6, 16, 12)
    chosen = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(t))[:3] for t in range(7)])
    weights = torch.rand(7, 3, generator=torch.Generator().manual_seed(9))
    first = experts.start
    found = mixture(
        Layer("Swiglu", experts, on_input), x, chosen, weights, lambda index: (w1[first + index], w2[first + index])
    )
    expected = torch.zeros(7, 16, dtype=torch.float64)
    for token in range(7):
        for slot in range(3):
            expert, weight = int(chosen[token, slot]), float(weights[token, slot])
            if expert in experts:
                up, gate = (w1[expert].double() @ x[token].double() * (weight if on_input else 1)).chunk(2)
                result = w2[expert].double() @ (up * gate * torch.sigmoid(gate))
                expected[token] += result if on_input else weight * result
    assert torch.allclose(found.double(), expected, atol=1e-4)


def test_experts_without_tokens_are_not_decoded():
    asked = []

    def expert(index):
        asked.append(index)
        return drawn(8, 4), drawn(4, 4)

    mixture(Layer("Swiglu", range(4)), drawn(2, 4), torch.tensor([[1], [3]]), torch.ones(2, 1), expert)
    assert asked == [1, 3]
