"""mxfp8_quantize: its calls, its checks, and quantisers that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.quantization.mxfp8_quantize import encoding_of, quantise
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.quantization import broken
from tests.routines.quantization.compiled import KERNELS

NAME = "mxfp8_quantize"
CASE = "--m 40 --k 160"
VECTOR = "00 d0 58 dc 60 e2 64 e6 68 e9 6a eb 6c ed 6e ef 70 f0 71 f2 72 f2 73 f4 74 f4 75 f6 76 f6 77 f8"


# ---- The call of the library ----


@covers(NAME, "cuda", "cute-dsl")
@pytest.mark.parametrize("backend", ["cuda", "cute-dsl"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("flags", "swizzled", "alignment", "pdl", "scales"),
    [
        ("", True, 32, False, 128 * 8),
        ("--no_sf_swizzled_layout --enable_pdl", False, 32, True, 40 * 5),
        ("--is_sf_swizzled_layout --alignment 160", True, 160, False, 128 * 8),
    ],
)
def test_flashinfer_is_called_as_it_declares(backend, dtype, flags, swizzled, alignment, pdl, scales):
    gives = (Gives((40, 160), torch.float8_e4m3fn), Gives((scales,), torch.uint8))
    with contract("flashinfer.mxfp8_quantize", gives) as kernel:
        launch, problem = launch_of(NAME, backend, f"{CASE} --input_dtype {dtype} {flags}")
        returned = launch()
    assert kernel.call.pop("input") is problem["x"]
    assert kernel.call == {
        "is_sf_swizzled_layout": swizzled, "alignment": alignment, "enable_pdl": pdl, "backend": backend,
    }  # fmt: skip
    assert problem["x"].dtype is getattr(torch, dtype)
    outputs, expected = launch.outputs(returned), routine_outputs(f"{CASE} {flags}")
    assert {name: (o.shape, o.dtype) for name, o in outputs.items()} == expected
    assert (launch.host_sync, launch.no_graph) == (False, "")


def routine_outputs(flags):
    """Shapes and formats as the conventions have them."""
    launch, _ = launch_of(NAME, "torch", flags)
    return {name: (output.shape, output.dtype) for name, output in launch.outputs(launch()).items()}


@pytest.mark.parametrize("backend", ["cuda", "cute-dsl"])
@pytest.mark.parametrize("layout", ["", "--no_sf_swizzled_layout"])
@pytest.mark.parametrize("flags", [CASE, "--m 1 --k 32", "--m 129 --k 128 --alignment 64 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(backend, flags, layout):
    with KERNELS[backend](), unconditional(NAME, backend):
        assert_passes(run(NAME, f"{flags} {layout}", backend))


# ---- Right quantisers pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["", "--no_sf_swizzled_layout"])
@pytest.mark.parametrize(("m", "k"), [(1, 32), (1, 4096), (3, 96), (127, 64), (128, 128), (300, 224)])
def test_torch_passes(m, k, layout, dtype):
    assert_passes(run(NAME, f"--m {m} --k {k} --input_dtype {dtype} {layout}", "torch"))


def test_torch_gives_the_vector_that_was_computed_with_cudas_own_conversions():
    case, _ = problem_of(NAME, "--m 1 --k 32 --no_sf_swizzled_layout")
    index = torch.arange(32)
    x_q, sf = quantise(torch.where(index % 2 == 0, index, -index).bfloat16()[None], encoding_of(case), 32)
    assert sf.tolist() == [0x7C]
    assert bytes(x_q.view(torch.uint8)[0].tolist()).hex(" ") == VECTOR


# ---- Wrong quantisers are caught ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["", "--no_sf_swizzled_layout"])
@pytest.mark.parametrize("wrong", broken.EVERYWHERE, ids=lambda wrong: wrong.__name__)
def test_a_broken_quantiser_is_caught(wrong, layout, dtype):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), f"{CASE} --input_dtype {dtype} {layout}"))


@pytest.mark.parametrize("wrong", broken.TILED, ids=lambda wrong: wrong.__name__)
def test_wrong_tiles_are_caught(wrong):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), CASE))


# ---- Bad input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--m 4 --k 33", r"alignment \(32\) must be a divisor of k \(33\)"),
        ("--m 4 --k 16", r"alignment \(32\) must be a divisor of k \(16\)"),
        ("--m 4 --k 160 --alignment 64", r"alignment \(64\) must be a divisor of k \(160\)"),
        ("--m 4 --k 160 --alignment 16", r"alignment \(16\) must be a multiple of the block size, 32"),
        ("--m 4 --k 160 --alignment 0", "--alignment must be at least 1, not 0"),
        ("--m 4 --k 160 --input_dtype float32", "--input_dtype: 'float32' is not one of bfloat16, float16"),
        ("--m 0 --k 160", "--m must be at least 1, not 0"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InvalidInput, match=message):
        problem_of(NAME, flags)


# ---- The problem ----


@pytest.mark.parametrize(("alignment", "scales"), [(32, 128), (64, 64), (128, 32)])
def test_work(alignment, scales):
    """3 FLOPs an element; the input, a byte an element, and one for every ``alignment`` of them."""
    _, problem = problem_of(NAME, f"--m 16 --k 256 --alignment {alignment}")
    assert problem.work == Work(flops=3 * 4096, bytes=2 * 4096 + 4096 + scales)


def test_lines():
    _, problem = problem_of(NAME, "--m 4 --k 64 --input_dtype float16 --no_sf_swizzled_layout --enable_pdl")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([4, 64])",
        "input_tensor.dtype = torch.float16",
        "is_sf_swizzled_layout = False",
        "alignment = 32",
        "enable_pdl = True",
    ]
    assert {line.level for line in problem.shown} == {2}
