from __future__ import annotations

import pytest
import torch

from flashinfer_perf.moe_tool.layout import by_rows, exchanged, swizzled


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn, torch.float32])
def test_halves_are_exchanged_expert_by_expert(dtype):
    weight = numbered(3, 4, 2).to(dtype)
    assert torch.equal(exchanged(weight).float(), weight.float()[:, [2, 3, 0, 1]])
    assert torch.equal(exchanged(exchanged(weight)).float(), weight.float())


def test_scales_are_padded_for_each_expert_and_come_back():
    scales = numbered(2, 64, 5)
    tiles = swizzled(scales)
    assert (tiles.shape, tiles.dtype) == ((2, 128, 8), torch.float8_e4m3fn)
    assert tiles.view(torch.uint8)[1].flatten()[1] == scales[1, 0, 1]
    assert tiles.view(torch.uint8)[1].flatten()[4] == scales[1, 32, 0]
    assert torch.equal(by_rows(tiles, 64, 5), scales)
