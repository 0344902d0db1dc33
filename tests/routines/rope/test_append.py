"""rope_quantize_fp8_append_paged_kv_cache: its call, its pages, its checks, and kernels that those must find out."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional
from tests.routines.rope import broken, compiled

NAME = "rope_quantize_fp8_append_paged_kv_cache"
SHAPE = "--batch_size 3 --seq_len 9 --num_qo_heads 4 --num_kv_heads 2 --head_dim 96 --rotary_dim 32 --page_size 4"
CASE = f"{SHAPE} --quant_scale_q 0.5 --quant_scale_kv 3"
"""Nine tokens in three pages of four slots: three slots of each sequence's last page stay as they are."""
LAYOUTS = ["NHD", "HND"]
FORMATS = ["fp8_e4m3", "fp8_e5m2"]
QUERIES = ["q_rope_out", "q_nope_out"]
CACHES = ["paged_kv_cache.0", "paged_kv_cache.1"]
CACHE_SHAPES = {"NHD": (9, 4, 2, 96), "HND": (9, 2, 4, 96)}


# ---- The call of the library ----


@covers(NAME, "cuda")
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize("kv_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["", "--interleave"])
@pytest.mark.parametrize("pdl", ["", "--enable_pdl"])
def test_calls_flashinfer_as_it_declares(kv_layout, quant_dtype, layout, pdl):
    dtype = DType(quant_dtype).torch
    returns = (Gives((27, 4, 32), dtype), Gives((27, 4, 64), dtype))
    line = f"{CASE} --kv_layout {kv_layout} --quant_dtype {quant_dtype} {layout} {pdl}"
    with contract(f"flashinfer.rope.{NAME}", returns) as kernel:
        launch, problem = launch_of(NAME, "cuda", line)
        returned = launch()
    call = kernel.call
    tensors = [name for name in problem.tensors if not name.endswith("_cache") or name == "cos_sin_cache"]
    assert all(call[name] is problem[name] for name in tensors)
    assert call["paged_kv_cache"][0] is problem["k_cache"]
    assert call["paged_kv_cache"][1] is problem["v_cache"]
    assert {(tuple(cache.shape), cache.dtype) for cache in call["paged_kv_cache"]} == {(CACHE_SHAPES[kv_layout], dtype)}
    assert {key: value for key, value in call.items() if key not in (*tensors, *QUERIES, "paged_kv_cache")} == {
        "is_neox": not layout,
        "quantize_dtype": dtype,
        "quant_scale_q": 0.5,
        "quant_scale_kv": 3.0,
        "page_size": 4,
        "kv_layout": kv_layout,
        "enable_pdl": bool(pdl),
    }
    assert set(launch.outputs(returned)) == {*QUERIES, *CACHES}


def test_what_the_library_would_convert_in_every_call_has_its_format():
    """int64 would cost a kernel for each tensor, inside the timed call."""
    _, problem = problem_of(NAME, CASE)
    names = ("kv_indices", "kv_indptr", "batch_indices", "positions", "pos_ids")
    assert {problem[name].dtype for name in names} == {torch.int32}


def test_pages_of_a_sequence_are_its_own_and_out_of_order():
    _, problem = problem_of(NAME, f"{CASE} --page_size 1")
    assert problem["kv_indptr"].tolist() == [0, 9, 18, 27]
    runs = problem["kv_indices"].view(3, 9).tolist()
    assert [sorted(run) for run in runs] == [list(range(first, first + 9)) for first in (0, 9, 18)]
    assert any(run != sorted(run) for run in runs)
    assert problem["batch_indices"].tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert problem["positions"].tolist() == problem["pos_ids"].tolist() == list(range(9)) * 3


# ---- Right kernels pass ----


@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("kv_layout", LAYOUTS)
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--interleave --input_dtype bfloat16",
        "--rotary_dim 96",
        "--page_size 16",
        "--page_size 1",
        "--page_size 3",
        "--rotary_dim 36 --head_dim 40 --num_kv_heads 4 --page_size 4",
        "--quant_scale_q 1e5 --quant_scale_kv 1e-3",
    ],
)
def test_right_kernels_pass(backend, flags, kv_layout, quant_dtype):
    line = f"{CASE} {flags} --kv_layout {kv_layout} --quant_dtype {quant_dtype}"
    with compiled.rope_module() as module, unconditional(NAME, "cuda"):
        assert_passes(run(NAME, line, backend))
    assert set(module.calls) == ({"append"} if backend == "cuda" else set())


def test_truth_token_by_token():
    _, problem = problem_of(NAME, f"{SHAPE} --kv_layout HND")
    truth = problem.truth()
    table = problem["kv_indices"].view(3, 3)
    keys = problem["k_nope"].to(torch.float8_e4m3fn)
    values = problem["v"].to(torch.float8_e4m3fn)
    for sequence, position in ((0, 0), (1, 5), (2, 8)):
        page, slot, token = table[sequence, position // 4], position % 4, 9 * sequence + position
        assert torch.equal(truth[CACHES[0]][page, :, slot, 32:].float(), keys[token].float())
        assert torch.equal(truth[CACHES[1]][page, :, slot].float(), values[token].float())
    untouched = truth[CACHES[0]][table[1, 2], :, 1:]
    assert torch.equal(untouched.float(), problem["k_cache"][table[1, 2], :, 1:].float())


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("output", QUERIES)
@pytest.mark.parametrize(
    "spoil",
    [broken.zeros, broken.one_nan, broken.next_token, broken.next_head, broken.last_token_forgotten],
)
def test_a_spoilt_query_is_caught(output, spoil):
    assert_caught(run_broken(NAME, broken.broken(NAME, after=spoil(output)), CASE))


def slots_of(outputs, cache, kv_layout):
    """(pages, slots, heads, dim) bytes."""
    raw = broken.raw(outputs[cache])
    return raw if kv_layout == "NHD" else raw.transpose(1, 2)


def all_zero(slots, call):
    slots.zero_()


def one_slot_off(slots, call):
    slots.copy_(slots.roll(1, dims=1))


def one_page_off(slots, call):
    slots.copy_(slots.roll(1, dims=0))


def next_head(slots, call):
    slots.copy_(slots.roll(1, dims=2))


def parts_exchanged(slots, call):
    """What was not rotated first."""
    slots.copy_(slots.roll(32, dims=3))


def one_slot_forgotten(slots, call):
    """Of the last token."""
    slots[call["kv_indices"][-1], 0] = 0x11


def one_element_two_steps_off(slots, call):
    slots[call["kv_indices"][1], 2, 1, 17] += 2


def untouched_slot_cleared(slots, call):
    slots[call["kv_indices"][2], 3] = 0


def one_bit_of_an_untouched_slot(slots, call):
    slots[call["kv_indices"][5], 1, 0, 0] ^= 1


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kv_layout", LAYOUTS)
@pytest.mark.parametrize(
    "change",
    [
        all_zero,
        one_slot_off,
        one_page_off,
        next_head,
        parts_exchanged,
        one_slot_forgotten,
        one_element_two_steps_off,
        untouched_slot_cleared,
        one_bit_of_an_untouched_slot,
    ],
)
def test_a_spoilt_cache_is_caught(cache, kv_layout, change):
    def spoil(outputs, call):
        change(slots_of(outputs, cache, kv_layout), call)

    record = run_broken(NAME, broken.broken(NAME, after=spoil), f"{CASE} --kv_layout {kv_layout}")
    assert_caught(record)
    assert [finding.output for finding in record.verdict.findings if not finding.passed] == [cache]


def written_at_the_neighbours_slot(case, call):
    return {"positions": call["positions"] + 1}


def page_table_ignored(case, call):
    return {"kv_indices": torch.arange(len(call["kv_indices"]), dtype=torch.int32)}


def other_sequences_pages(case, call):
    return {"batch_indices": 2 - call["batch_indices"]}


def keys_and_values_exchanged(case, call):
    return {"paged_kv_cache": call["paged_kv_cache"][::-1]}


def values_rotated(case, call):
    cos, sin = call["cos_sin_cache"][call["pos_ids"]].chunk(2, dim=-1)
    return {"v": compiled.rotate(call["v"], cos, sin, case.interleave).to(call["v"].dtype)}


def keys_not_rotated(case, call):
    """Turned back first."""
    cos, sin = call["cos_sin_cache"][call["pos_ids"]].chunk(2, dim=-1)
    return {"k_rope": compiled.rotate(call["k_rope"], cos, -sin, case.interleave).to(call["k_rope"].dtype)}


def values_scale_forgotten(case, call):
    return {"v": call["v"] / case.quant_scale_kv}


@pytest.mark.parametrize("kv_layout", LAYOUTS)
@pytest.mark.parametrize("quant_dtype", FORMATS)
@pytest.mark.parametrize("layout", ["", "--interleave"])
@pytest.mark.parametrize(
    "change",
    [
        broken.other_layout,
        broken.one_position_off,
        broken.first_position_everywhere,
        broken.cache_turned_back,
        broken.scales_forgotten,
        broken.scale_of_keys_forgotten,
        broken.scales_exchanged,
        written_at_the_neighbours_slot,
        page_table_ignored,
        other_sequences_pages,
        keys_and_values_exchanged,
        values_rotated,
        keys_not_rotated,
        values_scale_forgotten,
    ],
)
def test_a_wrong_argument_is_caught(change, layout, kv_layout, quant_dtype):
    line = f"{CASE} --kv_layout {kv_layout} --quant_dtype {quant_dtype} {layout}"
    assert_caught(run_broken(NAME, broken.broken(NAME, before=change), line))


def test_the_other_layout_of_the_cache_is_caught():
    """Where a page has as many tokens as heads, shapes do not tell."""

    def change(case, call):
        return {"kv_layout": "HND" if case.kv_layout == "NHD" else "NHD"}

    assert_caught(run_broken(NAME, broken.broken(NAME, before=change), f"{CASE} --page_size 2"))


def test_a_kernel_that_writes_nothing_is_caught():
    def prepare(case, problem):
        launch, _ = launch_of(NAME, "torch", CASE)
        return type(launch)(lambda **call: None, kwargs=launch.kwargs, mutates=launch.mutates)

    assert_caught(run_broken(NAME, prepare, CASE))
