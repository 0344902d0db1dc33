"""apply_rope_with_cos_sin_cache: its call, its cache, its checks, and kernels that those must find out."""

from __future__ import annotations

import math

import pytest
import torch

from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.rope import broken, compiled

NAME = "apply_rope_with_cos_sin_cache"
CASE = "--batch_size 3 --seq_len 9 --num_qo_heads 4 --num_kv_heads 2 --head_dim 64 --rotary_dim 32"
FORMATS = ["float16", "bfloat16"]
LAYOUTS = ["", "--interleave"]
OUTPUTS = ["query_out", "key_out"]


@covers(NAME, "cuda")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_flashinfer_as_it_declares(layout):
    returns = tuple(Gives((27, width), torch.float16) for width in (256, 128))
    with contract(f"flashinfer.rope.{NAME}", returns) as kernel:
        launch, problem = launch_of(NAME, "cuda", f"{CASE} {layout}")
        returned = launch()
    call = kernel.call
    tensors = {"query", "key", "cos_sin_cache", "positions"}
    assert all(call[name] is problem[name] for name in tensors)
    assert {key: value for key, value in call.items() if key not in tensors} == {
        "head_size": 64,
        "is_neox": not layout,
    }
    assert launch.outputs(returned) == dict(zip(OUTPUTS, returned, strict=True))


def test_the_cache_is_one_of_cosines_and_sines_in_fp32():
    """Upstream's is of random numbers and in the input's format, which the library refuses."""
    _, problem = problem_of(NAME, CASE)
    cache = problem["cos_sin_cache"]
    assert (tuple(cache.shape), cache.dtype, cache.is_contiguous()) == ((9, 32), torch.float32, True)
    angle = 5 * 10000 ** (-2 * 3 / 32)
    assert cache[5, 3].item() == pytest.approx(math.cos(angle), abs=2**-25)
    assert cache[5, 16 + 3].item() == pytest.approx(math.sin(angle), abs=2**-25)
    assert problem["positions"].dtype is torch.int64
    assert problem["positions"].tolist() == list(range(9)) * 3


def test_a_row_lies_behind_the_cache():
    """The library's kernels read past the last row with --interleave."""
    cache = problem_of(NAME, CASE)[1]["cos_sin_cache"]
    assert cache.untyped_storage().nbytes() == 10 * 32 * 4


@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        "--batch_size 1 --seq_len 1 --num_qo_heads 1 --num_kv_heads 1 --head_dim 2",
        "--batch_size 3 --seq_len 5 --num_qo_heads 3 --num_kv_heads 1 --head_dim 80 --rotary_dim 36",
        "--batch_size 1 --seq_len 3000 --num_qo_heads 2 --num_kv_heads 1 --head_dim 64",
    ],
)
@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_right_kernels_pass(backend, shape, layout, input_dtype):
    with compiled.rope_module(), unconditional(NAME, "cuda"):
        assert_passes(run(NAME, f"{shape} {layout} --input_dtype {input_dtype}", backend))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "spoil",
    [
        broken.zeros,
        broken.one_nan,
        broken.next_token,
        lambda output: broken.next_head(output, head_dim=64),
        broken.last_token_forgotten,
        lambda output: broken.copied_from(output, output.removesuffix("_out")),
    ],
)
def test_a_spoilt_output_is_caught(output, spoil):
    assert_caught(run_broken(NAME, broken.broken(NAME, after=spoil(output)), CASE))


def cache_in_the_inputs_format(case, call):
    return {"cos_sin_cache": call["cos_sin_cache"].bfloat16().float()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        broken.other_layout,
        broken.one_position_off,
        broken.first_position_everywhere,
        broken.cache_turned_back,
        broken.sines_first,
        cache_in_the_inputs_format,
    ],
)
def test_a_wrong_rotation_is_caught(change, input_dtype, layout):
    line = f"{CASE} --input_dtype {input_dtype} {layout}"
    assert_caught(run_broken(NAME, broken.broken(NAME, before=change), line))


def rest_rotated_too(case, call):
    cos, sin = call["cos_sin_cache"].chunk(2, dim=-1)
    return {"cos_sin_cache": torch.cat([cos, cos, sin, sin], dim=-1)}


def test_a_rotated_rest_is_caught():
    assert_caught(run_broken(NAME, broken.broken(NAME, before=rest_rotated_too), CASE))
