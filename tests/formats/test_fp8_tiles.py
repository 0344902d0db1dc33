"""E4M3 with a power of two for every tile, against loops in exact arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashinfer_perf.formats import fp8_tiles
from tests.formats.brute_force import all_16_bit, e4m3_magnitudes, nearest_even, smallest_exponent

DTYPES = [torch.bfloat16, torch.float16]
TILES = [(1, 128), (128, 128), (1, 32), (4, 8), (1, 1), (7, 5)]
SHAPES = [(1, 1), (128, 128), (130, 260), (9, 33), (2, 3, 17)]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def smallest_powers(amax: torch.Tensor) -> torch.Tensor:
    return torch.where(amax == 0, 1.0, 2.0 ** smallest_exponent(amax, 448, -126).double())


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile_by_itself(shape, tile):
    x = normal(*shape)
    quantised = fp8_tiles.encode(x, tile)
    *batch, rows, columns = shape
    down, across = -(-rows // tile[0]), -(-columns // tile[1])
    assert quantised.scales.shape == (*batch, down, across)
    assert (quantised.scales.dtype, quantised.elements.dtype) == (torch.float32, torch.float8_e4m3fn)
    tensors = (x, quantised.elements.float(), quantised.scales)
    matrices = zip(*(tensor.reshape(-1, *tensor.shape[-2:]) for tensor in tensors), strict=True)
    for matrix, elements, scales in matrices:
        for i in range(min(down, 3)):
            for j in range(min(across, 3)):
                part = (slice(i * tile[0], (i + 1) * tile[0]), slice(j * tile[1], (j + 1) * tile[1]))
                scale = float(smallest_powers(matrix[part].abs().max()))
                assert float(scales[i, j]) == scale
                codes = nearest_even(matrix[part].flatten().double() / scale, e4m3_magnitudes())
                expected = e4m3_magnitudes()[codes] * matrix[part].flatten().sign()
                assert torch.equal(elements[part].flatten().double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_amax_has_the_smallest_power_of_two(dtype):
    amax = all_16_bit(dtype)
    amax = amax[(amax > 0) & amax.isfinite()]
    scales = fp8_tiles.encode(-amax[:, None], (1, 128)).scales[:, 0]
    assert torch.equal(scales.double(), smallest_powers(amax))


@pytest.mark.parametrize("tile", TILES)
def test_decoding_multiplies_each_element_by_its_tiles_scale(tile):
    x = normal(19, 37) * 2.0 ** normal(19, 37).mul(5).round()
    quantised = fp8_tiles.encode(x, tile)
    decoded = fp8_tiles.decode(quantised, tile)
    for i, j in [(0, 0), (18, 36), (7, 5), (6, 4), (4, 8)]:
        scale = quantised.scales[i // tile[0], j // tile[1]]
        assert float(decoded[i, j]) == float(quantised.elements[i, j].float()) * float(scale)


def test_encoding_what_was_decoded_loses_nothing():
    """Powers of two: no rounding of its own on the way there and back, also where the scale becomes the next smaller
    one because the largest element was rounded down to 224.
    """
    x = normal(40, 300)
    once = fp8_tiles.encode(x, (1, 128))
    decoded = fp8_tiles.decode(once, (1, 128))
    twice = fp8_tiles.encode(decoded, (1, 128))
    assert torch.equal(fp8_tiles.decode(twice, (1, 128)), decoded)
    assert bool((twice.scales != once.scales).any())


def test_zero_tiles_infinities_and_nan():
    x = torch.tensor([[0.0, -0.0], [math.inf, 448.0], [-math.inf, math.nan], [math.nan, 1.0]])
    quantised = fp8_tiles.encode(x, (1, 2))
    assert quantised.scales.flatten().tolist() == [1.0, 1.0, 1.0, 2.0**-8]
    values = quantised.elements.float().tolist()
    assert quantised.elements.view(torch.uint8)[0].tolist() == [0, 0x80]
    assert values[1] == [448.0, 448.0]
    assert values[2][0] == -448.0
    assert math.isnan(values[2][1])
    assert math.isnan(values[3][0])
    assert values[3][1] == 256.0


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.floats(-6e4, 6e4, width=16), min_size=24, max_size=24),
    st.sampled_from([(1, 4), (4, 4), (3, 5), (2, 128)]),
)
def test_decoding_errs_by_half_a_step_at_most(numbers, tile):
    x = torch.tensor(numbers).reshape(4, 6)
    quantised = fp8_tiles.encode(x, tile)
    scales = fp8_tiles.decode(quantised._replace(elements=torch.ones(4, 6).to(torch.float8_e4m3fn)), tile).double()
    half_step = 2.0 ** (torch.frexp(x.double().abs() / scales).exponent.clamp(min=-5).double() - 5)
    error = (fp8_tiles.decode(quantised, tile).double() - x.double()).abs()
    assert bool((error <= half_step * scales).all())
