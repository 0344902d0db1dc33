"""The outputs' conventions, as the library's documentation and code have them."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.block_formats import MXFP4, MXFP8, NVFP4
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.formats.scale_layout import restore
from flashinfer_perf.formats.shuffle import unshuffle_rows
from flashinfer_perf.routines.quantization.encoding import Encoding
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank

CASES = [
    (Encoding(MXFP8, (40, 160), "128x4", kept=0), (40, 160), torch.float8_e4m3fn, (1024,)),
    (Encoding(MXFP8, (40, 160), "linear", kept=0), (40, 160), torch.float8_e4m3fn, (200,)),
    (Encoding(MXFP4, (40, 160), "128x4", kept=1), (40, 80), torch.uint8, (128, 8)),
    (Encoding(MXFP4, (41, 160), "8x4", kept=1), (41, 80), torch.uint8, (48, 8)),
    (Encoding(NVFP4, (40, 144), "linear", kept=1), (40, 72), torch.uint8, (40, 9)),
    (Encoding(NVFP4, (3, 129, 144), "128x4", kept=1), (3, 129, 72), torch.uint8, (3, 256 * 12)),
]


def numbered(encoding):
    """Elements and scales row by row, all rows different."""
    generator = torch.Generator().manual_seed(0)
    elements = torch.randint(0, 256, encoding.x_q_shape, generator=generator, dtype=torch.uint8)
    return elements, torch.randint(1, 127, encoding.scales_shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("encoding", "x_q", "dtype", "sf"), CASES)
def test_shapes(encoding, x_q, dtype, sf):
    assert (encoding.x_q_shape, encoding.x_q_dtype, encoding.sf_shape) == (x_q, dtype, sf)
    assert encoding.placed.shape == sf


@pytest.mark.parametrize("encoding", [case[0] for case in CASES])
def test_results_row_by_row_are_put_into_their_places(encoding):
    elements, scales = numbered(encoding)
    x_q, sf = encoding.place(elements, scales)
    assert torch.equal(x_q, elements)
    assert sf.shape == encoding.sf_shape
    assert torch.equal(restore(sf, encoding.layout, encoding.scales_shape), scales)


def test_shuffled_results_have_rows_of_both_in_another_order():
    encoding = Encoding(NVFP4, (128, 128), "128x4", kept=1, shuffled=True)
    elements, scales = numbered(encoding)
    x_q, sf = encoding.place(elements, scales)
    assert torch.equal(x_q[8], elements[1]), "row 1 goes to 8 * (1 % 4) + 1 // 4"
    assert torch.equal(unshuffle_rows(x_q), elements)
    assert torch.equal(unshuffle_rows(restore(sf, "128x4", (128, 8))), scales)


@pytest.mark.parametrize(("encoding", "available"), [(CASES[0][0], 6400 + 1024), (CASES[4][0], 2880 + 360)])
def test_outputs_are_accounted_for_byte_by_byte(encoding, available):
    def factory(free):
        return TensorFactory("cpu", 42, int(free / 0.9) + 1, SingleRank())

    encoding.reserve(factory(available))
    with pytest.raises(DoesNotFit, match=rf"{available} bytes"):
        encoding.reserve(factory(available - 8))
