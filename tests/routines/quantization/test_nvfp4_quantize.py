"""nvfp4_quantize: its calls, its checks, and quantisers that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.quantization.nvfp4_quantize import NO_GRAPH, encoding_of, quantise
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.quantization import broken
from tests.routines.quantization.compiled import KERNELS

NAME = "nvfp4_quantize"
CASE = "--m 40 --k 144"
WHOLE = "--m 128 --k 192"
LAYOUTS = {"128x4": (128, 12), "8x4": (40, 12), "linear": (40, 9)}
VECTOR = "90 a2 c3 d4 e5 e6 f6 f7"

each_backend = pytest.mark.parametrize("backend", ["cuda", "cute-dsl"])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
DSL = "flashinfer.quantization.kernels.nvfp4_quantize"
LARGE = "--m 256 --k 512"
OF_TIES = [broken.half_away_from_zero, broken.half_towards_zero]
"""Ties are few, in float16 above all: only under scales that are powers of two do they count. Under a global scale
that is none, reciprocals may decide every tie in either way.
"""


def named(wrong):
    return wrong.__name__


# ---- The call of the library ----


def called(backend, flags, scales):
    """The launch, and what FlashInfer is called with but for the input; outputs have the conventions' shapes."""
    m, k = (int(word) for word in flags.split()[1:4:2])
    gives = (Gives((m, k // 2), torch.uint8), Gives(scales, torch.uint8))
    with contract("flashinfer.nvfp4_quantize", gives) as kernel:
        launch, problem = launch_of(NAME, backend, flags)
        returned = launch()
    assert kernel.call.pop("a") is problem["x"]
    assert kernel.call.pop("a_global_sf") is problem["global_scale"]
    ours, _ = launch_of(NAME, "torch", flags)
    found, expected = launch.outputs(returned), ours.outputs(ours())
    assert {n: (o.shape, o.dtype) for n, o in found.items()} == {n: (o.shape, o.dtype) for n, o in expected.items()}
    return launch, problem, kernel.call


@covers(NAME, "cuda", "cute-dsl")
@each_backend
@each_layout
@pytest.mark.parametrize(("flags", "pdl"), [("", False), ("--input_dtype float16 --enable_pdl", True)])
def test_flashinfer_is_called_as_it_declares(backend, layout, flags, pdl):
    flashinfer = pytest.importorskip("flashinfer")
    launch, problem, arguments = called(backend, f"{CASE} --sf_layout {layout} {flags}", LAYOUTS[layout])
    assert arguments == {
        "sfLayout": flashinfer.SfLayout[f"layout_{layout}"],
        "do_shuffle": False,
        "sf_vec_size": 16,
        "enable_pdl": pdl,
        "backend": backend,
        "nvfp4_4over6": None,
    }
    assert problem["x"].dtype is (torch.float16 if pdl else torch.bfloat16)
    assert (launch.host_sync, launch.no_graph) == (False, "")


@each_backend
def test_shuffling_is_asked_for_and_known_to_fit_no_graph(backend):
    launch, _, arguments = called(backend, f"{WHOLE} --do_shuffle", (128, 12))
    assert arguments["do_shuffle"] is True
    assert (launch.host_sync, launch.no_graph) == (True, NO_GRAPH)
    assert NO_GRAPH == "do_shuffle=True is not CUDA graph compatible. Disabling CUDA graph."


@pytest.mark.parametrize(("flags", "value"), [("", 1.0), ("--global_scale 0.37", 0.37), ("--global_scale 448", 448.0)])
def test_the_global_scale(flags, value):
    _, problem = problem_of(NAME, f"{CASE} {flags}")
    found = problem["global_scale"]
    assert (found.shape, found.dtype, found.item()) == ((1,), torch.float32, pytest.approx(value, rel=1e-7))


@each_backend
@each_layout
@pytest.mark.parametrize("global_scale", [1, 0.37])
@pytest.mark.parametrize("flags", [CASE, "--m 1 --k 16", "--m 129 --k 128 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(backend, flags, global_scale, layout):
    """Layout and shape of the scales are as its own code gives them, also where columns are padded."""
    with KERNELS[backend](), unconditional(NAME, backend):
        assert_passes(run(NAME, f"{flags} --sf_layout {layout} --global_scale {global_scale}", backend))


@each_backend
@pytest.mark.parametrize("flags", [WHOLE, "--m 256 --k 64 --global_scale 3.7 --input_dtype float16"])
def test_what_flashinfer_shuffles_passes(backend, flags):
    """By its own row numbers, and into its own shape."""
    with KERNELS[backend](), unconditional(NAME, backend):
        assert_passes(run(NAME, f"{flags} --do_shuffle", backend))


@each_layout
def test_the_librarys_path_for_large_inputs_gives_the_same_shapes(layout, monkeypatch):
    """Its rows are padded to another tile there, and cut off again."""
    monkeypatch.setattr(f"{DSL}._should_use_tma", lambda *_, **__: True)
    with KERNELS["cute-dsl"]() as ran, unconditional(NAME, "cute-dsl"):
        assert_passes(run(NAME, f"--m 41 --k 512 --sf_layout {layout}", "cute-dsl"))
    assert set(ran) == {"_get_compiled_kernel_nvfp4_tma"}


def test_the_environment_does_not_switch_another_recipe_on(monkeypatch):
    monkeypatch.setenv("FLASHINFER_NVFP4_4OVER6", "1")
    with KERNELS["cuda"]() as module, unconditional(NAME, "cuda"):
        assert_passes(run(NAME, CASE, "cuda"))
    off = {made["recipe"] for made in module.calls}
    from flashinfer.quantization.nvfp4_quantization_utils import nvfp4_4over6_code

    assert off == {nvfp4_4over6_code(None)}
    assert {made["enable_pdl"] for made in module.calls} == {False}


# ---- Right quantisers pass ----


@each_dtype
@each_layout
@pytest.mark.parametrize("global_scale", [1, 0.37, 2.5e-4, 612.4, 1e5, 2.0**-100, 2.0**100])
@pytest.mark.parametrize(("m", "k"), [(1, 16), (3, 4096), (127, 48), (300, 224)])
def test_torch_passes(m, k, global_scale, layout, dtype):
    flags = f"--m {m} --k {k} --input_dtype {dtype} --sf_layout {layout} --global_scale {global_scale}"
    assert_passes(run(NAME, flags, "torch"))


@each_dtype
@pytest.mark.parametrize("global_scale", [1, 0.37])
@pytest.mark.parametrize(("m", "k"), [(128, 64), (384, 320)])
def test_torch_shuffles(m, k, global_scale, dtype):
    flags = f"--m {m} --k {k} --input_dtype {dtype} --do_shuffle --global_scale {global_scale}"
    assert_passes(run(NAME, flags, "torch"))


def test_torch_gives_the_vector_that_was_computed_with_cudas_own_conversions():
    case, _ = problem_of(NAME, "--m 1 --k 16 --sf_layout linear")
    index = torch.arange(16)
    x = torch.where(index % 2 == 0, index, -index).bfloat16()[None]
    x_q, sf = quantise(x, torch.ones(1), encoding_of(case))
    assert sf.tolist() == [[0x42]]
    assert bytes(x_q[0].tolist()).hex(" ") == VECTOR


# ---- Wrong quantisers are caught ----


@each_dtype
@each_layout
@pytest.mark.parametrize("wrong", [*broken.EVERYWHERE, *broken.PACKED], ids=named)
def test_a_broken_quantiser_is_caught(wrong, layout, dtype):
    size = LARGE if wrong in OF_TIES else CASE
    flags = f"{size} --input_dtype {dtype} --sf_layout {layout}"
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), flags))


@pytest.mark.parametrize("global_scale", [0.37, 612.4])
@pytest.mark.parametrize("wrong", [w for w in (*broken.EVERYWHERE, *broken.SCALED) if w not in OF_TIES], ids=named)
def test_with_a_global_scale_too(wrong, global_scale):
    flags = f"{CASE} --global_scale {global_scale}"
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), flags))


@pytest.mark.parametrize("wrong", broken.TILED, ids=named)
def test_wrong_tiles_are_caught(wrong):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), CASE))


@pytest.mark.parametrize("wrong", [*broken.EVERYWHERE, *broken.SHUFFLED], ids=named)
def test_a_broken_quantiser_that_shuffles_is_caught(wrong):
    assert_caught(run_broken(NAME, broken.prepared(NAME, wrong), f"{WHOLE} --do_shuffle"))


def test_a_shuffle_that_nobody_asked_for_is_caught():
    def prepare(case, problem):
        launch, _ = launch_of(NAME, "torch", f"{WHOLE} --do_shuffle")
        return launch

    assert_caught(run_broken(NAME, prepare, WHOLE))


# ---- Bad input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--m 4 --k 24", r"k \(24\) must be divisible by the block size, 16"),
        ("--m 4 --k 64 --sf_vec_size 32", r"sf_vec_size \(32\) must be 16: NVFP4 has no other block"),
        ("--m 4 --k 64 --sf_vec_size 0", "--sf_vec_size must be at least 1, not 0"),
        ("--m 4 --k 64 --global_scale 0", "--global_scale must be above 0, not 0"),
        ("--m 4 --k 64 --global_scale nan", "--global_scale takes a finite number, not 'nan'"),
        ("--m 4 --k 64 --global_scale 1e31", r"global_scale \(1e\+31\) must be between 2\^-100 and 2\^100"),
        ("--m 4 --k 64 --global_scale 1e-40", r"global_scale \(1e-40\) must be between 2\^-100 and 2\^100"),
        ("--m 4 --k 64 --sf_layout 128x8", "--sf_layout: '128x8' is not one of 128x4, 8x4, linear"),
        ("--m 4 --k 64 --input_dtype float32", "--input_dtype: 'float32' is not one of bfloat16, float16"),
        ("--m 128 --k 64 --do_shuffle --sf_layout 8x4", "do_shuffle needs sf_layout 128x4, not 8x4"),
        ("--m 128 --k 64 --do_shuffle --sf_layout linear", "do_shuffle needs sf_layout 128x4, not linear"),
        ("--m 96 --k 64 --do_shuffle", r"do_shuffle needs m \(96\) to be a multiple of 128"),
        ("--m 128 --k 48 --do_shuffle", r"do_shuffle needs k \(48\) to be a multiple of 64"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InvalidInput, match=message):
        problem_of(NAME, flags)


# ---- The problem ----


def test_work():
    """3 FLOPs an element; the input, the global scale, half a byte an element and a byte for every 16."""
    _, problem = problem_of(NAME, "--m 4 --k 64")
    assert problem.work == Work(flops=3 * 256, bytes=2 * 256 + 4 + 128 + 16)


def test_lines():
    _, problem = problem_of(NAME, f"{WHOLE} --do_shuffle --global_scale 2.5 --enable_pdl")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([128, 192])",
        "input_tensor.dtype = torch.bfloat16",
        "global_scale = 2.5",
        "sf_layout_str = '128x4'",
        "do_shuffle = True",
        "sf_vec_size = 16",
        "enable_pdl = True",
    ]
