"""mxfp4_quantize: its calls, its checks, and quantisers that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.quantization.mxfp4_quantize import encoding_of, quantise
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.quantization import broken
from tests.routines.quantization.compiled import KERNELS

NAME = "mxfp4_quantize"
CASE = "--m 40 --k 160"
LAYOUTS = {"128x4": (128, 8), "8x4": (40, 8), "linear": (40, 5)}
VECTOR = "80 90 91 a2 a2 b2 b3 c4 c4 c4 d4 d5 d5 d5 e6 e6"

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


# ---- The call of the library ----


def call(backend, layout, flags=""):
    """What FlashInfer is called with, but for the input; the outputs have the conventions' shapes."""
    flashinfer = pytest.importorskip("flashinfer")
    gives = (Gives((40, 80), torch.uint8), Gives(LAYOUTS[layout], torch.uint8))
    with contract("flashinfer.mxfp4_quantize", gives) as kernel:
        launch, problem = launch_of(NAME, backend, f"{CASE} --sf_layout {layout} {flags}")
        returned = launch()
    assert kernel.call.pop("a") is problem["x"]
    assert kernel.call.pop("backend") == backend
    assert kernel.call.pop("sfLayout") is flashinfer.SfLayout[f"layout_{layout}"]
    ours, _ = launch_of(NAME, "torch", f"{CASE} --sf_layout {layout}")
    expected = ours.outputs(ours())
    found = launch.outputs(returned)
    assert {n: (o.shape, o.dtype) for n, o in found.items()} == {n: (o.shape, o.dtype) for n, o in expected.items()}
    assert problem["x"].dtype is (torch.float16 if "float16" in flags.split() else torch.bfloat16)
    return kernel.call


@covers(NAME, "cuda")
@each_layout
@pytest.mark.parametrize("flags", ["", "--input_dtype float16 --enable_pdl"])
def test_cuda_calls_flashinfer_as_it_declares(layout, flags):
    assert call("cuda", layout, flags) == {}, "it has no say in PDL"


@covers(NAME, "cute-dsl")
@each_layout
@pytest.mark.parametrize(("flags", "pdl"), [("", False), ("--input_dtype float16 --enable_pdl", True)])
def test_cute_dsl_calls_flashinfer_as_it_declares(layout, flags, pdl):
    assert call("cute-dsl", layout, flags) == {"enable_pdl": pdl}


@pytest.mark.parametrize("backend", ["cuda", "cute-dsl"])
@each_layout
@pytest.mark.parametrize("flags", [CASE, "--m 1 --k 32", "--m 129 --k 128 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(backend, flags, layout):
    """Layout and shape of the scales are as its own code gives them, also where columns are padded."""
    with KERNELS[backend](), unconditional(NAME, backend):
        assert_passes(run(NAME, f"{flags} --sf_layout {layout}", backend))


def test_the_librarys_cuda_kernel_always_has_pdl():
    """So the flag is declared as ignored, and this test notices when it need not be any more."""
    with KERNELS["cuda"]() as module, unconditional(NAME, "cuda"):
        record = run(NAME, f"{CASE} --no-enable_pdl", "cuda")
    assert_passes(record)
    assert {made["enable_pdl"] for made in module.calls} == {True}
    assert "enable_pdl" not in record.case


# ---- Right quantisers pass ----


@each_dtype
@each_layout
@pytest.mark.parametrize(("m", "k"), [(1, 32), (1, 4096), (3, 96), (127, 64), (128, 128), (300, 224)])
def test_torch_passes(m, k, layout, dtype):
    assert_passes(run(NAME, f"--m {m} --k {k} --input_dtype {dtype} --sf_layout {layout}", "torch"))


def test_torch_gives_the_vector_that_was_computed_with_cudas_own_conversions():
    case, _ = problem_of(NAME, "--m 1 --k 32 --sf_layout linear")
    index = torch.arange(32)
    x_q, sf = quantise(torch.where(index % 2 == 0, index, -index).bfloat16()[None], encoding_of(case))
    assert sf.tolist() == [[0x82]]
    assert bytes(x_q[0].tolist()).hex(" ") == VECTOR


# ---- Wrong quantisers are caught ----


@each_dtype
@each_layout
@pytest.mark.parametrize("wrong", [*broken.EVERYWHERE, *broken.PACKED], ids=lambda wrong: wrong.__name__)
def test_a_broken_quantiser_is_caught(wrong, layout, dtype):
    flags = f"{CASE} --input_dtype {dtype} --sf_layout {layout}"
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), flags))


@pytest.mark.parametrize("wrong", broken.TILED, ids=lambda wrong: wrong.__name__)
def test_wrong_tiles_are_caught(wrong):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), CASE))


def test_padding_of_8x4_tiles_is_checked():
    flags = "--m 41 --k 160 --sf_layout 8x4"
    assert_caught(run_broken(NAME, broken.prepared(NAME, broken.padding_not_zero), flags))


# ---- Bad input ----


@pytest.mark.parametrize("k", [1, 16, 33, 100])
def test_columns_that_are_no_whole_blocks_are_invalid(k):
    with pytest.raises(InvalidInput, match=rf"k \({k}\) must be divisible by the block size, 32"):
        problem_of(NAME, f"--m 4 --k {k}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sf_layout 4x8", "--sf_layout: '4x8' is not one of 128x4, 8x4, linear"),
        ("--input_dtype fp8_e4m3", "--input_dtype: 'fp8_e4m3' is not one of bfloat16, float16"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InvalidInput, match=message):
        problem_of(NAME, f"{CASE} {flags}")


# ---- The problem ----


@each_layout
def test_work(layout):
    """3 FLOPs an element; the input, half a byte an element and a byte for every 32, whatever the padding."""
    _, problem = problem_of(NAME, f"--m 4 --k 64 --sf_layout {layout}")
    assert problem.work == Work(flops=3 * 256, bytes=2 * 256 + 128 + 8)


def test_lines():
    _, problem = problem_of(NAME, "--m 4 --k 64")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([4, 64])",
        "input_tensor.dtype = torch.bfloat16",
    ]
