"""Which weights are refused, and what is read off those that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights


def fp8_blocks() -> ExpertWeights:
    zeros = lambda *shape: torch.zeros(shape).to(torch.float8_e4m3fn)  # noqa: E731
    return ExpertWeights(
        ExpertFormat.FP8_BLOCK, zeros(3, 256, 256), zeros(3, 256, 128), torch.ones(3, 2, 2), torch.ones(3, 2, 1)
    )


def fp4() -> ExpertWeights:
    zeros = lambda *shape: torch.zeros(shape, dtype=torch.uint8)  # noqa: E731
    scales = zeros(2, 128, 8), zeros(2, 128, 4)
    return ExpertWeights(
        ExpertFormat.NVFP4, zeros(2, 128, 64), zeros(2, 128, 32), *scales, torch.ones(2), torch.ones(2)
    )


def test_sizes():
    for weights, sizes in ((fp8_blocks(), (3, 256, 128)), (fp4(), (2, 128, 64))):
        weights.check(gated=True)
        assert (weights.num_experts, weights.hidden_size, weights.intermediate_size) == sizes


@pytest.mark.parametrize(
    ("weights", "changed", "message"),
    [
        (fp8_blocks(), {"w1": torch.zeros(3, 128, 256)}, r"w1 is \(3, 128, 256\) of torch.float32: give \(3, 256, 256"),
        (fp8_blocks(), {"w2": torch.zeros(3, 256, 128)}, "w2 is .* give .* of torch.float8_e4m3fn"),
        (fp8_blocks(), {"w1_scale": None}, r"w1_scale is missing: give \(3, 2, 2\) of torch.float32"),
        (fp8_blocks(), {"w2_scale": torch.ones(3, 1, 2)}, r"w2_scale is \(3, 1, 2\).*give \(3, 2, 1\)"),
        (fp8_blocks(), {"format": ExpertFormat.FP8_CHANNEL}, r"w1_scale is .*give \(3, 256\)"),
        (fp8_blocks(), {"format": ExpertFormat.FP8_TENSOR}, r"w1_scale is .*give \(3,\)"),
        (fp8_blocks(), {"w2": fp8_blocks().w2[..., :64].contiguous()}, "w1 is"),
        (fp8_blocks(), {"w1": fp8_blocks().w1.mT.contiguous().mT}, "w1 must be contiguous"),
        (fp4(), {"w1_global": None}, r"w1_global is missing: give \(2,\) of torch.float32"),
        (fp4(), {"w2_scale": torch.ones(2, 128, 4)}, "w2_scale is .* of torch.float32: give .*float8_e4m3fn or"),
    ],
)
def test_what_is_not_as_described_is_refused(weights, changed, message):
    with pytest.raises(ValueError, match=message):
        replace(weights, **changed).check(gated=True)


def test_sizes_that_blocks_do_not_divide_are_refused():
    zeros = lambda *shape: torch.zeros(shape, dtype=torch.bfloat16)  # noqa: E731
    with pytest.raises(ValueError, match="intermediate size is 24: give a multiple of 16 for 16-bit"):
        ExpertWeights(ExpertFormat.BF16, zeros(1, 24, 32), zeros(1, 32, 24)).check(gated=False)
