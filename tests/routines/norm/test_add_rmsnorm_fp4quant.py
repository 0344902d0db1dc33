"""add_rmsnorm_fp4quant: its call, its residual, both layouts. What both FP4 norms share is in test_fp4quant.py."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.work import Work
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken
from tests.routines.norm import kernels

NAME = "add_rmsnorm_fp4quant"
CASE = "--batch_size 33 --hidden_size 320"
BOTH = f"{CASE} --output_both_sf_layouts"
E4M3 = torch.float8_e4m3fn
LINEAR, TILES = ((6, 5), E4M3), ((128 * 8,), E4M3)


@covers(NAME, "cute-dsl")
@pytest.mark.parametrize(
    ("flags", "block_scale", "unswizzled"),
    [
        ("", LINEAR, LINEAR),
        ("--use_global_scale", LINEAR, LINEAR),
        ("--is_sf_swizzled_layout", TILES, LINEAR),
        ("--output_both_sf_layouts", TILES, LINEAR),
        ("--output_both_sf_layouts --is_sf_swizzled_layout", TILES, LINEAR),
        ("--num_heads 22 --output_both_sf_layouts", ((256 * 8,), E4M3), ((6, 22, 5), E4M3)),
        (
            "--out_dtype mxfp4 --hidden_size 96 --output_both_sf_layouts",
            ((128 * 4,), torch.uint8),
            ((6, 3), torch.uint8),
        ),
    ],
)
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_calls_flashinfer_as_it_declares(flags, block_scale, unswizzled, pdl):
    gives = tuple(Gives((1,), torch.uint8) for _ in range(3 if "both" in flags else 2))
    with contract("flashinfer.norm.add_rmsnorm_fp4quant", gives) as kernel:
        line = f"--batch_size 6 --hidden_size 80 --eps 1e-5 {flags} {pdl}"
        launch, problem = launch_of(NAME, "cute-dsl", line)
        returned = launch()
    call, x = kernel.call, problem["x"]
    assert call.pop("input") is x
    assert call.pop("residual") is problem["residual"]
    assert call.pop("weight") is problem["weight"]
    assert call.pop("global_scale") is problem["global_scale"]
    y, scales, linear = call.pop("y_fp4"), call.pop("block_scale"), call.pop("block_scale_unswizzled")
    assert (y.shape, y.dtype) == ((*x.shape[:-1], x.shape[-1] // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == block_scale
    assert (linear.shape, linear.dtype) == unswizzled
    assert call == {
        "eps": 1e-5,
        "block_size": 32 if "mxfp4" in flags else 16,
        "scale_format": "ue8m0" if "mxfp4" in flags else "e4m3",
        "is_sf_swizzled_layout": "swizzled" in flags,
        "output_both_sf_layouts": "both" in flags,
        "enable_pdl": bool(pdl),
    }
    outputs = {"residual": problem["residual"], "y_fp4": y, "block_scale": scales}
    if "both" in flags:
        outputs["block_scale_unswizzled"] = linear
    assert launch.outputs(returned) == outputs
    assert launch.scratch == (() if "both" in flags else ("block_scale_unswizzled",))
    assert launch.resolved_backend == "cute-dsl"


@pytest.mark.parametrize("flags", ["", "--is_sf_swizzled_layout", "--num_heads 3", "--out_dtype mxfp4"])
def test_torch_passes_with_both_layouts(flags):
    assert_passes(run(NAME, f"{BOTH} {flags}", "torch"))


def leaves_the_residual(case, arguments):
    return {"residual": arguments["residual"].clone()}


def ignores_the_residual(case, arguments):
    return {"residual": torch.zeros_like(arguments["residual"])}


def adds_twice(case, arguments):
    arguments["residual"].add_(arguments["input"])


@pytest.mark.parametrize("before", [leaves_the_residual, ignores_the_residual])
def test_a_wrong_residual_is_caught(before):
    assert_caught(run_broken(NAME, kernels.wrong(NAME, before=before), CASE))


@pytest.mark.parametrize(
    "spoil",
    [
        adds_twice,
        kernels.zeros("residual"),
        kernels.nan("residual"),
        kernels.one_row_off("residual"),
        kernels.last_row_missing("residual"),
    ],
)
def test_a_spoilt_residual_is_caught(spoil):
    assert_caught(run_broken(NAME, kernels.wrong(NAME, after=spoil), CASE))


@pytest.mark.parametrize(
    "spoil",
    [
        kernels.zeros("block_scale"),
        kernels.zeros("block_scale_unswizzled"),
        kernels.one_row_off("block_scale_unswizzled"),
        kernels.last_row_missing("block_scale_unswizzled"),
    ],
)
def test_either_layout_is_checked(spoil):
    assert_caught(run_broken(NAME, kernels.wrong(NAME, after=spoil), BOTH))


@pytest.mark.parametrize(
    ("flags", "layouts"), [("", 1), ("--is_sf_swizzled_layout", 1), ("--output_both_sf_layouts", 2)]
)
def test_work(flags, layouts):
    """6 FLOPs an element; 2E in, H weights and E residual out in 2 bytes; E / 2 bytes, a byte a block and layout."""
    _, problem = problem_of(NAME, f"--batch_size 5 --num_heads 3 --hidden_size 64 {flags}")
    assert problem.work == Work(flops=6 * 960, bytes=2 * (3 * 960 + 64) + 480 + layouts * 60)


def test_truth_by_hand():
    _, problem = problem_of(NAME, "--batch_size 2 --hidden_size 32 --eps 0.5 --output_both_sf_layouts")
    h = [x + r for x, r in zip(problem["x"][1].tolist(), problem["residual"][1].tolist(), strict=True)]
    size = (sum(value * value for value in h) / 32 + 0.5) ** 0.5
    expected = [value / size * w for value, w in zip(h, problem["weight"].tolist(), strict=True)]
    truth = problem.truth()
    assert truth["residual"][1].tolist() == pytest.approx(h, rel=1e-6)
    assert truth["y_fp4"][1].tolist() == pytest.approx(expected, rel=1e-6)
    scales = [max(map(abs, block)) / 6 for block in (expected[:16], expected[16:])]
    assert truth["block_scale"][1].tolist() == pytest.approx(scales, rel=1e-6)
    assert torch.equal(truth["block_scale"], truth["block_scale_unswizzled"])


def test_shown():
    _, problem = problem_of(NAME, "--batch_size 3 --hidden_size 64 --out_dtype mxfp4 --output_both_sf_layouts")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([3, 64])",
        "input_tensor.dtype = torch.bfloat16",
        "residual_tensor.shape = torch.Size([3, 64])",
        "weight.shape = torch.Size([64])",
        "out_dtype = 'mxfp4'",
        "block_size = 32",
        "use_global_scale = False",
        "is_sf_swizzled_layout = False",
        "output_both_sf_layouts = True",
    ]
