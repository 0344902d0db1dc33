"""nvfp4_batched_quantize: its call, its checks, and quantisers that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.quantization import broken
from tests.routines.quantization.compiled import KERNELS

NAME = "nvfp4_batched_quantize"
CASE = "--batch_size 3 --m 40 --k 144"
LARGE = "--batch_size 2 --m 128 --k 512"
OF_TIES = [broken.half_away_from_zero, broken.half_towards_zero]
"""Ties that count are few in float16."""


def named(wrong):
    return wrong.__name__


# ---- The call of the library ----


@covers(NAME, "cuda")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cuda_calls_flashinfer_as_it_declares(dtype):
    gives = (Gives((3, 40, 72), torch.uint8), Gives((3, 128 * 12), torch.uint8))
    with contract("flashinfer.nvfp4_batched_quantize", gives) as kernel:
        launch, problem = launch_of(NAME, "cuda", f"{CASE} --input_dtype {dtype}")
        returned = launch()
    assert kernel.call.pop("a") is problem["x"]
    assert kernel.call.pop("a_global_sf") is problem["global_scale"]
    assert kernel.call == {"sf_vec_size": 16, "nvfp4_4over6": None}
    assert (problem["x"].dtype, problem["x"].shape) == (getattr(torch, dtype), (3, 40, 144))
    ours, _ = launch_of(NAME, "torch", CASE)
    found, expected = launch.outputs(returned), ours.outputs(ours())
    assert {n: (o.shape, o.dtype) for n, o in found.items()} == {n: (o.shape, o.dtype) for n, o in expected.items()}


@pytest.mark.parametrize("global_scale", [1, 0.37])
@pytest.mark.parametrize("flags", [CASE, "--batch_size 1 --m 129 --k 128 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(flags, global_scale):
    with KERNELS["cuda"](), unconditional(NAME, "cuda"):
        assert_passes(run(NAME, f"{flags} --global_scale {global_scale}", "cuda"))


# ---- Right quantisers pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("global_scale", [1, 0.37, 612.4])
@pytest.mark.parametrize(("batch", "m", "k"), [(1, 1, 16), (5, 128, 64), (2, 129, 80)])
def test_torch_passes(batch, m, k, global_scale, dtype):
    flags = f"--batch_size {batch} --m {m} --k {k} --global_scale {global_scale} --input_dtype {dtype}"
    assert_passes(run(NAME, flags, "torch"))


# ---- Wrong quantisers are caught ----

BROKEN = [*broken.EVERYWHERE, *broken.PACKED, *broken.TILED, *broken.BATCHED]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("wrong", BROKEN, ids=named)
def test_a_broken_quantiser_is_caught(wrong, dtype):
    size = LARGE if wrong in OF_TIES else CASE
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), f"{size} --input_dtype {dtype}"))


@pytest.mark.parametrize("wrong", broken.SCALED, ids=named)
def test_a_wrong_global_scale_is_caught(wrong):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), f"{CASE} --global_scale 0.37"))


# ---- Bad input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--m 4 --k 64", "missing required flag --batch_size"),
        ("--batch_size 0 --m 4 --k 64", "--batch_size must be at least 1, not 0"),
        ("--batch_size 2 --m 4 --k 24", r"k \(24\) must be divisible by the block size, 16"),
        ("--batch_size 2 --m 4 --k 64 --sf_vec_size 32", r"sf_vec_size \(32\) must be 16"),
        ("--batch_size 2 --m 4 --k 64 --global_scale 1e31", r"global_scale \(1e\+31\) must be between"),
        ("--batch_size 2 --m 4 --k 64 --backends cute-dsl", "'cute-dsl' is not one of cuda, triton, torch"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InvalidInput, match=message):
        problem_of(NAME, flags)


# ---- The problem ----


def test_work():
    """As of one matrix, but of all elements; one global scale."""
    _, problem = problem_of(NAME, "--batch_size 3 --m 4 --k 64")
    assert problem.work == Work(flops=3 * 768, bytes=2 * 768 + 4 + 384 + 48)


def test_lines():
    _, problem = problem_of(NAME, f"{CASE} --global_scale 2.5")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([3, 40, 144])",
        "input_tensor.dtype = torch.bfloat16",
        "global_scale = 2.5",
        "sf_vec_size = 16",
    ]
