"""What holds for both FP4 norms: the library's rule for the global scale, layouts, wrong kernels, bad input."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch

from flashinfer_perf.checks.block_formats import FORMATS
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.record import Status
from flashinfer_perf.formats import mxfp4, nvfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from tests.fakes import HOPPER
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    case_of,
    problem_of,
    records_of,
    routine_named,
    run,
    run_broken,
    unconditional,
)
from tests.routines.norm import kernels

NAMES = ["rmsnorm_fp4quant", "add_rmsnorm_fp4quant"]
CASE = "--batch_size 33 --hidden_size 320"
FORMAT_FLAGS = ["--out_dtype nvfp4", "--out_dtype nvfp4 --use_global_scale", "--out_dtype mxfp4"]
LAYOUTS = ["", "--is_sf_swizzled_layout"]

each = pytest.mark.parametrize("name", NAMES)


# ---- FlashInfer's own Python, with the rule of its kernels ----


def as_compiled(x, weight, y, scales, global_scale, rows, eps, block_size, swizzled, both, residual=None, **rest):
    """What the compiled kernels compute, as their source says: the global scale multiplies the block scale and what
    the elements are multiplied by; x * weight is rounded to the input's format, the sum with the residual too.
    """
    assert (y.dtype, scales.dtype) == (torch.uint8, torch.uint8)
    assert (rows, tuple(y.shape)) == (len(x), (len(x), x.shape[1] // 2))
    h = x.float() if residual is None else x.float() + residual.float()
    rstd = h.square().mean(dim=-1, keepdim=True).add(eps).rsqrt()
    if residual is None:
        normed = (x * weight).float() * rstd
    else:
        residual.copy_(h)
        normed = residual.float() * rstd * weight.float()
    packed, found = nvfp4.encode(normed, global_scale, zero_lost=True) if block_size == 16 else mxfp4.encode(normed)
    y.copy_(packed)
    scales.copy_(swizzle_128x4(found).flatten() if swizzled else found)
    if both:
        rest["unswizzled"].copy_(found)


@each
@pytest.mark.parametrize("layout", [*LAYOUTS, "--output_both_sf_layouts"])
@pytest.mark.parametrize("flags", FORMAT_FLAGS)
@pytest.mark.parametrize("shape", [CASE, "--batch_size 7 --num_heads 3 --hidden_size 96 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(name, shape, flags, layout):
    """Shapes and formats are as its own code demands them, in every layout; the global scale is not 1."""
    with kernels.blackwell(name, as_compiled), unconditional(name, "cute-dsl"):
        record = run(name, f"{shape} {flags} {layout} --enable_pdl", "cute-dsl")
    assert_passes(record)
    assert record.resolved_backend == "cute-dsl"


@each
def test_the_global_scale_multiplies_by_the_installed_librarys_rule(name):
    """Its docstring says that the norm is divided by it; the kernel's source decides, and this test notices a change:
    scale = g * amax / 6, element = e2m1(y * g / scale).
    """
    module = sys.modules[getattr(pytest.importorskip("flashinfer").norm, name).__module__]
    source = " ".join(inspect.getsource(module).split())
    assert "scale_float = global_scale_val * max_abs * fp4_max_rcp" in source
    assert "fp8_e4m3_to_f32_and_rcp(scale_fp8_u32) * global_scale_val" in source
    assert "global_scale_val = mGlobalScale[0]" in source
    assert "/ global_scale_val" not in source


@each
def test_a_kernel_by_the_docstrings_rule_is_caught(name):
    """y / g instead of y * g."""

    def before(case, arguments):
        return {"global_scale": arguments["global_scale"].reciprocal()}

    assert_caught(run_broken(name, kernels.wrong(name, before=before), f"{CASE} --use_global_scale"))


@each
@pytest.mark.parametrize("flags", ["--use_global_scale", ""])
def test_the_global_scale(name, flags):
    """2688 / amax of what is quantised, so that the largest block scale is 448; without the flag 1."""
    _, problem = problem_of(name, f"{CASE} {flags}")
    global_scale = problem["global_scale"]
    assert (global_scale.shape, global_scale.dtype) == ((1,), torch.float32)
    largest = float(problem.truth()["block_scale"].max())
    if flags:
        assert largest == pytest.approx(448, rel=1e-6)
        assert float(global_scale) > 50
    else:
        assert float(global_scale) == 1.0
        assert largest < 10


# ---- Right kernels pass ----


@each
@pytest.mark.parametrize("input_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("flags", FORMAT_FLAGS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        "--batch_size 1 --hidden_size 32",
        "--batch_size 129 --hidden_size 96",
        "--batch_size 5 --num_heads 27 --hidden_size 64",
        "--batch_size 2 --hidden_size 8192 --eps 0.1",
        "--batch_size 3 --hidden_size 64 --eps 1e7",  # nvfp4 without a global scale loses every block
    ],
)
def test_torch_passes(name, shape, layout, flags, input_dtype):
    assert_passes(run(name, f"{shape} {flags} {layout} --input_dtype {input_dtype}", "torch"))


# ---- Wrong kernels are caught ----


def one_code_off(case, arguments):
    arguments["block_scale"].view(torch.uint8).add_(1)


def one_scale_nan(case, arguments):
    arguments["block_scale"].view(torch.uint8)[0, ..., 0] = 0xFF


def half_bytes_swapped(case, arguments):
    y = arguments["y_fp4"]
    y.copy_((y >> 4) | (y << 4))


SPOILT = [
    *[kernels.zeros(output) for output in ("y_fp4", "block_scale")],
    *[kernels.one_row_off(output) for output in ("y_fp4", "block_scale")],
    *[kernels.one_column_off(output) for output in ("y_fp4", "block_scale")],
    *[kernels.last_row_missing(output) for output in ("y_fp4", "block_scale")],
    kernels.changes_weight,
    one_code_off,
    one_scale_nan,
    half_bytes_swapped,
]


@each
@pytest.mark.parametrize("flags", FORMAT_FLAGS)
@pytest.mark.parametrize("spoil", range(len(SPOILT)))
def test_a_spoilt_output_is_caught(name, flags, spoil):
    assert_caught(run_broken(name, kernels.wrong(name, after=SPOILT[spoil]), f"{CASE} {flags}"))


@each
@pytest.mark.parametrize("flags", FORMAT_FLAGS)
@pytest.mark.parametrize("before", [kernels.ignores_weight, kernels.other_eps])
def test_a_wrong_argument_is_caught(name, flags, before):
    assert_caught(run_broken(name, kernels.wrong(name, before=before), f"{CASE} --eps 0.5 {flags}"))


@each
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, 2.0])
def test_a_wrong_global_scale_is_caught(name, factor):
    def before(case, arguments):
        return {"global_scale": arguments["global_scale"] * factor}

    assert_caught(run_broken(name, kernels.wrong(name, before=before), f"{CASE} --use_global_scale"))


@each
def test_a_global_scale_that_is_ignored_is_caught(name):
    def before(case, arguments):
        return {"global_scale": torch.ones(1)}

    assert_caught(run_broken(name, kernels.wrong(name, before=before), f"{CASE} --use_global_scale"))


@each
def test_a_kernel_that_writes_nothing_is_caught(name):
    assert_caught(run_broken(name, kernels.writes_nothing(name), CASE))


@each
@pytest.mark.parametrize("flags", FORMAT_FLAGS)
def test_scales_row_by_row_where_tiles_are_due_are_caught(name, flags):
    """As many bytes as tiles have, so that only their order is wrong."""

    def not_swizzled(case, arguments):
        blocks = case.hidden_size // FORMATS[case.out_dtype].block
        tiles = arguments["block_scale"].view(torch.uint8)
        index = torch.arange(128 * blocks).reshape(128, blocks)
        linear = torch.empty_like(tiles)
        low, high = (swizzle_128x4((index // 256**part % 256).to(torch.uint8)).flatten().long() for part in (0, 1))
        linear[low + 256 * high] = tiles
        tiles.copy_(linear)

    line = f"--batch_size 128 --hidden_size 512 --is_sf_swizzled_layout {flags}"
    assert_caught(run_broken(name, kernels.wrong(name, after=not_swizzled), line))


# ---- Bad input ----


@each
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hidden_size 100", r"hidden_size \(100\) must be divisible by the block of nvfp4: 16 for nvfp4, 32 for mx"),
        ("--hidden_size 80 --out_dtype mxfp4", r"hidden_size \(80\) must be divisible by the block of mxfp4"),
        ("--hidden_size 96 --out_dtype fp8_e4m3", "--out_dtype: 'fp8_e4m3' is not one of nvfp4, mxfp4"),
        ("--hidden_size 96 --out_dtype fp8_e5m2", "--out_dtype: 'fp8_e5m2' is not one of nvfp4, mxfp4"),
        ("--hidden_size 96 --out_dtype mxfp4 --use_global_scale", "use_global_scale is for nvfp4: mxfp4 has no global"),
    ],
)
def test_invalid(name, flags, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(name, f"--batch_size 3 {flags}")


@each
def test_the_default_format_is_nvfp4(name):
    case = case_of(name, CASE)
    assert case.flags.out_dtype is DType.NVFP4
    assert next(iter(case.routine.backends)) == "cute-dsl"


@each
def test_blackwell_is_needed(name):
    backend = routine_named(name).backends["cute-dsl"]
    requirement, reason = backend.unmet(HOPPER, case_of(name, CASE).flags)
    assert requirement.on_capability
    assert reason == "it needs compute capability 10.0 or newer, and this GPU has 9.0"


@each
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--batch_size 3 --hidden_size 48", "it needs hidden_size of 64 or more"),
        (f"--batch_size {1 << 20} --hidden_size 2048", "2^31"),
    ],
)
def test_limits_of_the_library(name, flags, says):
    """What torch does all the same."""
    from dataclasses import replace

    routine, values = routine_named(name), case_of(name, flags).flags
    _, reason = routine.backends["cute-dsl"].unmet(replace(HOPPER, compute_capability=(10, 0)), values)
    assert says in reason
    assert routine.backends["torch"].unmet(HOPPER, values) is None


@each
def test_there_is_no_cuda_kernel_and_the_value_is_not_rewritten(name):
    cuda, torch_ = records_of(case_of(name, f"{CASE} --backends cuda torch"))
    assert (cuda.status, cuda.backend) == (Status.UNSUPPORTED, "cuda")
    assert cuda.reason == "FlashInfer has this in the CuTe DSL only; use --backends cute-dsl"
    assert_passes(torch_)
