from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.expert_tolerance import GAIN, ROUNDING_NOISE, for_experts
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, nvfp4

HIDDEN, INTERMEDIATE, TOKENS = 512, 256, 128


def through_nvfp4(values):
    return nvfp4.decode(nvfp4.encode(values))


def through_fp8(values):
    return fp8.decode_tensor(fp8.encode_tensor(values, DType.FP8_E4M3))


ROUND = {DType.FLOAT16: lambda values: values.half().float(), DType.FP8_E4M3: through_fp8, DType.NVFP4: through_nvfp4}


def expert(round_to=lambda values: values, scale=1.0):
    """One expert's output, with activations rounded before either product."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    w1 = torch.randn(2 * INTERMEDIATE, HIDDEN, generator=generator) / HIDDEN**0.5
    w2 = torch.randn(HIDDEN, INTERMEDIATE, generator=generator) / INTERMEDIATE**0.5
    up, gate = (round_to(x) @ w1.T).chunk(2, dim=-1)
    return scale * (round_to(torch.nn.functional.silu(gate) * up) @ w2.T)


@pytest.mark.parametrize("format", ROUND)
def test_the_noise_is_that_of_the_format(format):
    values = torch.randn(256, 1024, generator=torch.Generator().manual_seed(1))
    noise = (ROUND[format](values) - values).norm() / values.norm()
    doubled = 2 if format is DType.FLOAT16 else 1
    assert doubled * float(noise) == pytest.approx(ROUNDING_NOISE[format], rel=0.03)


@pytest.mark.parametrize("format", [DType.FP8_E4M3, DType.NVFP4])
def test_the_gain_is_that_of_an_expert(format):
    error = (expert(ROUND[format]) - expert()).norm() / expert().norm()
    assert float(error) == pytest.approx(GAIN * ROUNDING_NOISE[format], rel=0.06)


@pytest.mark.parametrize("format", ROUND)
def test_an_honest_expert_passes_and_one_that_is_scaled_wrongly_does_not(format):
    check, truth = for_experts(format, DType.FLOAT16), {"out": expert()}
    assert check.judge("out", {"out": expert(ROUND[format]).half()}, truth).passed
    assert not check.judge("out", {"out": expert(ROUND[format], scale=2.0).half()}, truth).passed
    assert not check.judge("out", {"out": expert(ROUND[format]).half().roll(1, 0)}, truth).passed
