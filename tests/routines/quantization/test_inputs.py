"""Inputs of the family: what is drawn, what is accounted for, and what cannot fit."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.routines.harness import case_of, problem_of

MEBIBYTE = 1 << 20
NEEDED = {  # x in 16 bits, elements, scales, and a global scale
    "mxfp8_quantize --m 1024 --k 1024": 2 * MEBIBYTE + MEBIBYTE + MEBIBYTE // 32,
    "mxfp4_quantize --m 1024 --k 1024": 2 * MEBIBYTE + MEBIBYTE // 2 + MEBIBYTE // 32,
    "nvfp4_quantize --m 1024 --k 1024": 2 * MEBIBYTE + MEBIBYTE // 2 + MEBIBYTE // 16 + 4,
    "nvfp4_batched_quantize --batch_size 4 --m 256 --k 1024": 2 * MEBIBYTE + MEBIBYTE // 2 + MEBIBYTE // 16 + 4,
}


def test_values_are_standard_normal_in_the_input_format():
    for name, dtype in [("mxfp8_quantize", torch.bfloat16), ("nvfp4_quantize", torch.float16)]:
        _, problem = problem_of(name, f"--m 128 --k 256 --input_dtype {str(dtype).removeprefix('torch.')}")
        x = problem["x"]
        assert x.dtype is dtype
        assert abs(float(x.float().mean())) < 0.02
        assert float(x.float().std()) == pytest.approx(1, abs=0.02)


def test_all_quantisers_of_matrices_get_the_same_values():
    first, *others = [problem_of(name, "--m 5 --k 64")[1]["x"] for name in MATRICES]
    assert all(torch.equal(first, other) for other in others)


MATRICES = ["mxfp8_quantize", "mxfp4_quantize", "nvfp4_quantize"]


def made_with(line, free_bytes):
    name, _, flags = line.partition(" ")
    case = case_of(name, flags)
    return case.routine.make(case.flags, TensorFactory("cpu", 42, int(free_bytes / 0.9) + 1, SingleRank()))


@pytest.mark.parametrize(("line", "needed"), NEEDED.items(), ids=[line.split()[0] for line in NEEDED])
def test_inputs_and_outputs_are_accounted_for(line, needed):
    assert made_with(line, needed)["x"].numel() == MEBIBYTE
    with pytest.raises(DoesNotFit):
        made_with(line, needed - 2)


@pytest.mark.parametrize("line", NEEDED, ids=[line.split()[0] for line in NEEDED])
def test_what_cannot_fit_is_refused_with_both_byte_counts_before_it_is_allocated(line, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.run.factory.torch.randn", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(DoesNotFit, match=r"\(\d+ bytes, .*\), but .* \(\d+ bytes\) are free"):
        made_with(line, MEBIBYTE)
