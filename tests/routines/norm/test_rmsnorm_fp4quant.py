"""rmsnorm_fp4quant: its call and its problem. What both FP4 norms share is in test_fp4quant.py."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.events import Message
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import Gives, contract, covers
from tests.routines.harness import case_of, launch_of, problem_of

NAME = "rmsnorm_fp4quant"
E4M3 = torch.float8_e4m3fn


@covers(NAME, "cute-dsl")
@pytest.mark.parametrize(
    ("flags", "block", "scale_format", "scale"),
    [
        ("", 16, "e4m3", ((6, 5), E4M3)),
        ("--use_global_scale", 16, "e4m3", ((6, 5), E4M3)),
        ("--num_heads 2 --out_dtype nvfp4", 16, "e4m3", ((6, 2, 5), E4M3)),
        ("--is_sf_swizzled_layout", 16, "e4m3", ((128 * 8,), E4M3)),
        ("--num_heads 22 --is_sf_swizzled_layout", 16, "e4m3", ((256 * 8,), E4M3)),
        ("--out_dtype mxfp4 --hidden_size 96", 32, "ue8m0", ((6, 3), torch.uint8)),
        ("--out_dtype mxfp4 --hidden_size 96 --is_sf_swizzled_layout", 32, "ue8m0", ((128 * 4,), torch.uint8)),
    ],
)
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_calls_flashinfer_as_it_declares(flags, block, scale_format, scale, pdl):
    with contract("flashinfer.norm.rmsnorm_fp4quant", (Gives((1,), torch.uint8), Gives((1,), torch.uint8))) as kernel:
        line = f"--batch_size 6 --hidden_size 80 --eps 1e-5 {flags} {pdl}"
        launch, problem = launch_of(NAME, "cute-dsl", line)
        returned = launch()
    call, x = kernel.call, problem["x"]
    assert call.pop("input") is x
    assert call.pop("weight") is problem["weight"]
    assert call.pop("global_scale") is problem["global_scale"]
    y, scales = call.pop("y_fp4"), call.pop("block_scale")
    assert (y.shape, y.dtype) == ((*x.shape[:-1], x.shape[-1] // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == scale
    assert call == {
        "eps": 1e-5,
        "block_size": block,
        "scale_format": scale_format,
        "is_sf_swizzled_layout": "swizzled" in flags,
        "enable_pdl": bool(pdl),
    }
    assert launch.outputs(returned) == {"y_fp4": y, "block_scale": scales}
    assert launch.resolved_backend == "cute-dsl"


@pytest.mark.parametrize(("flags", "scales"), [("--out_dtype nvfp4", 960 // 16), ("--out_dtype mxfp4", 960 // 32)])
def test_work(flags, scales):
    """5 FLOPs an element; E in and H weights in 2 bytes, E / 2 bytes of elements and one for each block out."""
    _, problem = problem_of(NAME, f"--batch_size 5 --num_heads 3 --hidden_size 64 {flags}")
    assert problem.work == Work(flops=5 * 960, bytes=2 * (960 + 64) + 480 + scales)


def test_truth_by_hand():
    _, problem = problem_of(NAME, "--batch_size 2 --hidden_size 32 --eps 0.5")
    row, weight = problem["x"][1].tolist(), problem["weight"].tolist()
    size = (sum(value * value for value in row) / 32 + 0.5) ** 0.5
    expected = [value / size * w for value, w in zip(row, weight, strict=True)]
    truth = problem.truth()
    assert truth["y_fp4"][1].tolist() == pytest.approx(expected, rel=1e-6)
    blocks = [expected[:16], expected[16:]]
    assert truth["block_scale"][1].tolist() == pytest.approx([max(map(abs, b)) / 6 for b in blocks], rel=1e-6)


def test_shown():
    _, problem = problem_of(NAME, "--batch_size 3 --num_heads 2 --hidden_size 64 --use_global_scale")
    assert [line.text for line in problem.shown] == [
        "input_tensor.shape = torch.Size([3, 2, 64])",
        "input_tensor.dtype = torch.bfloat16",
        "weight.shape = torch.Size([64])",
        "out_dtype = 'nvfp4'",
        "block_size = 16",
        "use_global_scale = True",
        "is_sf_swizzled_layout = False",
        "enable_pdl = False",
    ]


def test_both_layouts_are_another_routines():
    case = case_of(NAME, "--batch_size 3 --hidden_size 64 --output_both_sf_layouts --backends torch")
    texts = [event.text for event in run_case(case, SingleRank()) if isinstance(event, Message)]
    assert f"--output_both_sf_layouts is ignored: {NAME} does not read it." in texts
