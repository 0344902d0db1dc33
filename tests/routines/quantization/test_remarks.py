"""The documents' -vv lines about what a quantiser returned."""

from __future__ import annotations

import re

import pytest
import torch

from flashinfer_perf.routines.quantization import remarks
from tests.routines.harness import launch_of

DOCUMENTED = [  # the documents' example, of a B300: but for the backend's name
    "Backend torch: x_q.shape = torch.Size([2048, 8192]), x_q.dtype = torch.float8_e4m3fn, "
    "sf.shape = torch.Size([524288]), sf.dtype = torch.uint8",
    "Round-trip error: 0/16777216 (0.00%) elements differ",
]


def lines(name, flags, change=lambda outputs: None):
    launch, problem = launch_of(name, "torch", flags)
    outputs = dict(launch.outputs(launch()))
    change(outputs)
    return list(problem.remarks("torch", outputs))


@pytest.mark.slow
def test_the_documents_example():
    assert lines("mxfp8_quantize", "--m 2048 --k 8192") == DOCUMENTED


@pytest.mark.parametrize("name", ["mxfp8_quantize", "mxfp4_quantize"])
def test_mx_formats_are_decoded_again(name):
    shapes, round_trip = lines(name, "--m 40 --k 160")
    assert shapes.startswith("Backend torch: x_q.shape = torch.Size([40, ")
    assert round_trip == "Round-trip error: 0/6400 (0.00%) elements differ"


@pytest.mark.parametrize(
    ("name", "flags", "x_q", "sf"),
    [
        ("nvfp4_quantize", "--m 40 --k 144", [40, 72], [128, 12]),
        ("nvfp4_batched_quantize", "--batch_size 2 --m 40 --k 144", [2, 40, 72], [2, 1536]),
    ],
)
def test_nvfp4_has_its_shapes_only(name, flags, x_q, sf):
    assert lines(name, flags) == [
        f"Backend torch: x_q.shape = torch.Size({x_q}), x_q.dtype = torch.uint8, "
        f"sf.shape = torch.Size({sf}), sf.dtype = torch.uint8"
    ]


def counted(name, change, flags="--m 40 --k 160"):
    found = re.fullmatch(r"Round-trip error: (\d+)/6400 \((.*)%\) elements differ", lines(name, flags, change)[1])
    assert found[2] == f"{100 * int(found[1]) / 6400:.2f}"
    return int(found[1])


@pytest.mark.parametrize("name", ["mxfp8_quantize", "mxfp4_quantize"])
def test_far_elements_are_counted(name):
    """|x - d| <= 0.5 + 0.5 |d|: for elements that decode to zero, those beyond a half."""
    _, problem = launch_of(name, "torch", "--m 40 --k 160")
    beyond = int((problem["x"].abs() > 0.5).sum())
    assert counted(name, lambda outputs: outputs["x_q"].view(torch.uint8).zero_()) == beyond


@pytest.mark.parametrize(
    ("name", "layout"), [("mxfp8_quantize", "--no_sf_swizzled_layout"), ("mxfp4_quantize", "--sf_layout linear")]
)
def test_all_elements_are_far_from_not_a_number(name, layout):
    assert counted(name, lambda outputs: outputs["sf"].fill_(0xFF), f"--m 40 --k 160 {layout}") == 6400


def test_a_few_rows_at_a_time_are_as_good_as_all(monkeypatch):
    whole = counted("mxfp4_quantize", lambda outputs: outputs["x_q"].zero_())
    monkeypatch.setattr(remarks, "ELEMENTS_AT_A_TIME", 7 * 160)
    assert counted("mxfp4_quantize", lambda outputs: outputs["x_q"].zero_()) == whole > 0


@pytest.mark.parametrize("key", ["x_q", "sf"])
def test_what_cannot_be_decoded_is_left_to_the_check(key):
    found = lines("mxfp4_quantize", "--m 40 --k 160", lambda outputs: outputs.update({key: outputs[key][1:]}))
    assert len(found) == 1
