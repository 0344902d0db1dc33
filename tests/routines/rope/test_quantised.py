"""rope_quantize_fp8 and mla_rope_quantize_fp8: their calls, their checks, and kernels that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.rope import broken, compiled

HEADS, MLA = "rope_quantize_fp8", "mla_rope_quantize_fp8"
SCALES = "--quant_scale_q 0.5 --quant_scale_kv 3"
CASES = {
    HEADS: f"--batch_size 3 --seq_len 9 --num_qo_heads 4 --num_kv_heads 2 --head_dim 96 --rotary_dim 64 "
    f"--no_rope_dim 32 {SCALES}",
    MLA: f"--batch_size 3 --seq_len 9 --num_qo_heads 4 --head_dim 96 --no_rope_dim 32 {SCALES}",
}
NAMES = [HEADS, MLA]
FORMATS = ["fp8_e4m3", "fp8_e5m2"]
LAYOUTS = ["", "--interleave"]
PARTS = ["q_rope", "k_rope", "q_nope", "k_nope"]
OUTPUTS = [f"{part}_out" for part in PARTS]
KEYS = {HEADS: (27, 2), MLA: (27,)}
DEEPSEEK = "--batch_size 1 --seq_len 3 --num_qo_heads 2 --head_dim 576 --no_rope_dim 512"


def shape_of(name, part):
    leading = (27, 4) if part.startswith("q") else KEYS[name]
    return (*leading, 64 if part.endswith("rope") else 32)


def expected_call(problem, quant_dtype, layout):
    return {
        "is_neox": not layout,
        "quantize_dtype": DType(quant_dtype).torch,
        "quant_scale_q": 0.5,
        "quant_scale_kv": 3.0,
    }


# ---- The call of the library ----


@covers(HEADS, "cuda")
@covers(MLA, "cuda", "cutile")
@pytest.mark.parametrize(
    ("name", "backend", "function", "more"),
    [
        (HEADS, "cuda", HEADS, {"backend": "cuda"}),
        (MLA, "cuda", MLA, {}),
        (MLA, "cutile", HEADS, {"backend": "cutile"}),
    ],
)
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pdl", ["", "--enable_pdl"])
def test_calls_flashinfer_as_it_declares(name, backend, function, more, quant_dtype, layout, pdl):
    dtype = DType(quant_dtype).torch
    returns = tuple(Gives(shape_of(name, part), dtype) for part in PARTS)
    with contract(f"flashinfer.rope.{function}", returns) as kernel:
        launch, problem = launch_of(name, backend, f"{CASES[name]} --quant_dtype {quant_dtype} {layout} {pdl}")
        returned = launch()
    call = kernel.call
    tensors = (*PARTS, "cos_sin_cache", "pos_ids")
    assert all(call[tensor] is problem[tensor] for tensor in tensors)
    assert {part: (call[f"{part}_out"].shape, call[f"{part}_out"].dtype) for part in PARTS} == {
        part: (shape_of(name, part), dtype) for part in PARTS
    }
    rest = {key: value for key, value in call.items() if key not in (*tensors, *OUTPUTS)}
    enable_pdl = bool(pdl) and backend == "cuda"
    assert rest == {**expected_call(problem, quant_dtype, layout), "enable_pdl": enable_pdl, **more}
    assert launch.outputs(returned) == {output: call[output] for output in OUTPUTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_part_without_dimensions_is_none(name):
    line = "--batch_size 1 --seq_len 3 --num_qo_heads 2 --head_dim 64"
    line += " --num_kv_heads 1" if name == HEADS else ""
    launch, problem = launch_of(name, "cuda", line)
    assert (launch.kwargs["q_nope"], launch.kwargs["k_nope"]) == (None, None)
    assert set(launch.mutates) == set(problem.checks) == {"q_rope_out", "k_rope_out"}


def test_the_head_dim_of_mla_includes_both_parts():
    _, problem = problem_of(MLA, DEEPSEEK)
    assert tuple(problem["q_rope"].shape) == (3, 2, 64)
    assert tuple(problem["q_nope"].shape) == (3, 2, 512)
    assert (tuple(problem["k_rope"].shape), tuple(problem["k_nope"].shape)) == ((3, 64), (3, 512))
    assert (tuple(problem["cos_sin_cache"].shape), problem["cos_sin_cache"].dtype) == ((3, 64), torch.float32)
    assert (problem["pos_ids"].tolist(), problem["pos_ids"].dtype) == ([0, 1, 2], torch.int32)


# ---- Right kernels pass ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("input_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--interleave",
        "--quant_scale_q 1 --quant_scale_kv 1",
        "--quant_scale_q 1e5 --quant_scale_kv 300",  # saturates
        "--quant_scale_q 1e-3 --quant_scale_kv 1e-4",  # subnormal
        "--no_rope_dim 0",
        "--no_rope_dim 24",
    ],
)
def test_right_kernels_pass(name, backend, flags, input_dtype, quant_dtype):
    line = f"{CASES[name]} {flags} --input_dtype {input_dtype} --quant_dtype {quant_dtype}"
    with compiled.rope_module(), unconditional(name, "cuda"):
        assert_passes(run(name, line, backend))


@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_deepseeks_dimensions_pass(backend):
    with compiled.rope_module() as module, unconditional(MLA, "cuda"):
        assert_passes(run(MLA, DEEPSEEK, backend))
    assert set(module.calls) == ({"quantize"} if backend == "cuda" else set())


# ---- Wrong kernels are caught ----


def one_step_off(output):
    def spoil(outputs, call):
        outputs[output].view(torch.int8).add_(1)

    return spoil


def one_element_two_steps_off(output):
    def spoil(outputs, call):
        outputs[output].view(torch.int8).view(-1)[5] += 2

    return spoil


def towards_zero(output):
    """A cast that cuts off, as if it were rounding; found by the fraction that it hits."""

    def spoil(outputs, call):
        codes = outputs[output].view(torch.int8).view(-1)
        codes[::4] -= 1

    return spoil


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "spoil",
    [
        broken.zeros,
        broken.one_nan,
        broken.next_token,
        broken.last_token_forgotten,
        one_step_off,
        one_element_two_steps_off,
        towards_zero,
    ],
)
def test_a_spoilt_output_is_caught(name, output, spoil, quant_dtype):
    line = f"{CASES[name]} --quant_dtype {quant_dtype}"
    assert_caught(run_broken(name, broken.broken(name, after=spoil(output)), line))


@pytest.mark.parametrize(
    ("name", "output"),
    [*((HEADS, output) for output in OUTPUTS), (MLA, "q_rope_out"), (MLA, "q_nope_out")],  # MLA has one head of keys
)
def test_another_heads_output_is_caught(name, output):
    assert_caught(run_broken(name, broken.broken(name, after=broken.next_head(output)), CASES[name]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["q_rope", "k_rope"])
def test_what_is_not_rotated_is_caught(name, part):
    """Quantised and scaled, but not rotated."""
    scale = {"q_rope": 0.5, "k_rope": 3.0}[part]

    def spoil(outputs, call):
        outputs[f"{part}_out"].copy_(call[part].float() * scale)

    assert_caught(run_broken(name, broken.broken(name, after=spoil), CASES[name]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["q_nope", "k_nope"])
@pytest.mark.parametrize("interleave", [False, True])
def test_a_rest_that_is_rotated_is_caught(name, part, interleave):
    scale = {"q_nope": 0.5, "k_nope": 3.0}[part]

    def spoil(outputs, call):
        rest = call[part].reshape(27, -1, 32)
        cos, sin = (half[:, :16] for half in call["cos_sin_cache"][call["pos_ids"]].chunk(2, dim=-1))
        turned = compiled.rotate(rest, cos, sin, interleave) * scale
        outputs[f"{part}_out"].copy_(turned.reshape(call[part].shape))

    assert_caught(run_broken(name, broken.broken(name, after=spoil), CASES[name]))


def queries_head_forgotten(outputs, call):
    """The grid is too small by one head."""
    broken.raw(outputs["q_nope_out"])[:, -1] = 0x7F


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_head_is_caught(name):
    assert_caught(run_broken(name, broken.broken(name, after=queries_head_forgotten), CASES[name]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "change",
    [
        broken.other_layout,
        broken.one_position_off,
        broken.first_position_everywhere,
        broken.cache_turned_back,
        broken.sines_first,
        broken.scales_forgotten,
        broken.scale_of_keys_forgotten,
        broken.scales_divided_by,
        broken.scales_exchanged,
        broken.one_per_cent_more,
    ],
)
def test_a_wrong_argument_is_caught(name, change, layout, quant_dtype):
    line = f"{CASES[name]} --quant_dtype {quant_dtype} {layout}"
    assert_caught(run_broken(name, broken.broken(name, before=change), line))


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_that_writes_nothing_is_caught(name):
    def prepare(case, problem):
        launch, _ = launch_of(name, "torch", CASES[name])
        return type(launch)(lambda **call: None, kwargs=launch.kwargs, mutates=launch.mutates)

    assert_caught(run_broken(name, prepare, CASES[name]))
