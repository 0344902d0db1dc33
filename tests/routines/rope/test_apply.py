"""The four routines that compute cosines and sines: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.rope import broken, compiled

PLAIN = ["apply_rope", "apply_rope_pos_ids"]
LLAMA31 = ["apply_llama31_rope", "apply_llama31_rope_pos_ids"]
NAMES = [*PLAIN, *LLAMA31]
CASE = (
    "--batch_size 3 --seq_len 9 --num_qo_heads 4 --num_kv_heads 2 --head_dim 64 --rotary_dim 32 --rope_theta 5e5 "
    "--rope_scale 8"
)
SCALED = f"{CASE} --old_context_len 64"
"""Of the frequencies some stay, some are divided, some are blended."""
FORMATS = ["float16", "bfloat16"]
LAYOUTS = ["", "--interleave"]
OUTPUTS = ["q_rope", "k_rope"]


# ---- The call of the library ----


@covers("apply_rope", "cuda")
@covers("apply_rope_pos_ids", "cuda")
@covers("apply_llama31_rope", "cuda")
@covers("apply_llama31_rope_pos_ids", "cuda")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_flashinfer_as_it_declares(name, layout):
    line = f"{CASE} --low_freq_factor 2 --high_freq_factor 5 --old_context_len 64 --input_dtype bfloat16 {layout}"
    returns = tuple(Gives((27, heads, 64), torch.bfloat16) for heads in (4, 2))
    with contract(f"flashinfer.rope.{name}", returns) as kernel:
        launch, problem = launch_of(name, "cuda", line)
        returned = launch()
    call = kernel.call
    tensors = ("q", "k", "pos_ids") if name.endswith("pos_ids") else ("q", "k", "indptr", "offsets")
    assert all(call[tensor] is problem[tensor] for tensor in tensors)
    expected = {"rotary_dim": 32, "interleave": bool(layout), "rope_scale": 8.0, "rope_theta": 5e5}
    if name in LLAMA31:
        expected |= {"low_freq_factor": 2.0, "high_freq_factor": 5.0, "old_context_len": 64}
    assert {key: value for key, value in call.items() if key not in tensors} == expected
    assert launch.outputs(returned) == dict(zip(OUTPUTS, returned, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_sequences_and_positions(name):
    _, problem = problem_of(name, CASE)
    assert (tuple(problem["q"].shape), tuple(problem["k"].shape)) == ((27, 4, 64), (27, 2, 64))
    if name.endswith("pos_ids"):
        assert problem["pos_ids"].dtype is torch.int32
        assert problem["pos_ids"].tolist() == list(range(9)) * 3
    else:
        assert problem["indptr"].dtype is problem["offsets"].dtype is torch.int32
        assert (problem["indptr"].tolist(), problem["offsets"].tolist()) == ([0, 9, 18, 27], [0, 0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_the_triton_kernel_gets_the_same(name):
    """That it is right is tested where it can run: in Triton's interpreter, and on a GPU."""
    pytest.importorskip("triton")
    launch, problem = launch_of(name, "triton", SCALED)
    arguments = inspect.signature(launch.fn).bind(**launch.kwargs).arguments
    assert all(arguments.pop(tensor) is problem[tensor] for tensor in problem.tensors)
    scaling = (8.0, 1.0, 4.0, 64) if name in LLAMA31 else (8.0, 0.0, 0.0, 0)
    assert arguments == {"rotary_dim": 32, "interleave": False, "rope_theta": 5e5, "scaling": scaling}
    assert launch.returns == ("q_rope", "k_rope")


# ---- Right kernels pass ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        "--batch_size 1 --seq_len 1 --num_qo_heads 1 --num_kv_heads 1 --head_dim 2",
        "--batch_size 3 --seq_len 5 --num_qo_heads 3 --num_kv_heads 1 --head_dim 80 --rotary_dim 36",
        "--batch_size 1 --seq_len 3000 --num_qo_heads 1 --num_kv_heads 1 --head_dim 64 --rope_scale 8 --rope_theta 5e5",
        "--batch_size 1 --seq_len 700 --num_qo_heads 1 --num_kv_heads 1 --head_dim 8 --rope_scale 0.3 --rope_theta 0.9",
    ],
)
def test_torch_passes(name, shape, layout, input_dtype):
    assert_passes(run(name, f"{shape} {layout} --input_dtype {input_dtype}", "torch"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seq_len", [7, 9000])
def test_flashinfers_fast_functions_pass(name, seq_len, layout, input_dtype):
    """With errors as large as the vendor's bounds allow, which fp16 shows far out."""
    line = f"--batch_size 1 --seq_len {seq_len} --num_qo_heads 1 --num_kv_heads 1 --head_dim 64 --rope_scale 8"
    with compiled.rope_module() as module, unconditional(name, "cuda"):
        record = run(name, f"{line} --rope_theta 5e5 {layout} --input_dtype {input_dtype}", "cuda")
    assert_passes(record)
    assert set(module.calls) == {"apply"}


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "spoil",
    [broken.zeros, broken.one_nan, broken.next_token, broken.next_head, broken.last_token_forgotten],
)
def test_a_spoilt_output_is_caught(name, output, spoil):
    assert_caught(run_broken(name, broken.broken(name, after=spoil(output)), SCALED))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_what_is_not_rotated_is_caught(name, output):
    assert_caught(run_broken(name, broken.broken(name, after=broken.copied_from(output, output[0])), SCALED))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "change",
    [
        broken.other_layout,
        broken.one_position_off,
        broken.sequences_not_restarted,
        broken.turned_back,
        broken.scale_ignored,
        broken.theta_ignored,
        broken.all_dimensions_rotated,
        broken.fewer_dimensions_rotated,
    ],
)
def test_a_wrong_rotation_is_caught(name, change, layout, input_dtype):
    line = f"{SCALED} {layout} --input_dtype {input_dtype}"
    assert_caught(run_broken(name, broken.broken(name, before=change), line))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("change", [broken.one_position_off, broken.other_layout])
def test_a_wrong_rotation_is_caught_far_out(name, change):
    """Where the angles' own error is largest."""
    line = "--batch_size 1 --seq_len 20000 --num_qo_heads 1 --num_kv_heads 1 --head_dim 16 --input_dtype bfloat16"
    assert_caught(run_broken(name, broken.broken(name, before=change), line))


def scaled_without_blend(case, call):
    """Two kinds of frequencies, and nothing in between."""
    middle = 2 * 3.141592653589793 * (case.low_freq_factor + case.high_freq_factor) / 2 / case.old_context_len
    return {"scaling": lambda f: torch.where(f > middle, f, f / case.rope_scale)}


@pytest.mark.parametrize("name", LLAMA31)
@pytest.mark.parametrize("change", [broken.scale_for_all, scaled_without_blend])
def test_wrong_scaling_is_caught(name, change):
    assert_caught(run_broken(name, broken.broken(name, before=change), SCALED))


def one_bit_of_the_rest(outputs, call):
    outputs["k_rope"].view(torch.int16)[3, 1, -1] ^= 1


@pytest.mark.parametrize("name", NAMES)
def test_dimensions_without_rotation_are_exact(name):
    assert_caught(run_broken(name, broken.broken(name, after=one_bit_of_the_rest), SCALED))


def changes_its_input(case, call):
    call["q"][0, 0, 0] += 1
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_input_is_caught(name):
    assert_caught(run_broken(name, broken.broken(name, before=changes_its_input), SCALED))
