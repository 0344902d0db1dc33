"""PyTorch's own attention as a backend: right for every format, mask, group and length."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.checks.tolerance import for_attention
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.attention import eager
from flashinfer_perf.routines.attention.operands import Scales
from tests.routines.harness import assert_passes, problem_of, run, storages

PAGED, RAGGED = "BatchPrefillWithPagedKVCacheWrapper", "BatchPrefillWithRaggedKVCacheWrapper"
FORMATS = [
    *[(q, kv) for q in ("bfloat16", "float16") for kv in (q, "fp8_e4m3", "fp8_e5m2")],
    *[(q, kv) for q in ("fp8_e4m3", "fp8_e5m2") for kv in ("fp8_e4m3", "fp8_e5m2")],
]
SHAPES = {
    "prompt": "--batch_size 4 --s_qo 19 --s_kv 19",
    "after a cache": "--batch_size 4 --s_qo 9 --s_kv 30",
    "one query": "--batch_size 4 --s_qo 1 --s_kv 30",
    "one token": "--batch_size 2 --s_qo 1 --s_kv 1",
}
LAYOUTS = {
    "groups": "--num_qo_heads 6 --num_kv_heads 2 --head_dim_qk 16",
    "heads": "--num_qo_heads 3 --num_kv_heads 3 --head_dim_qk 24 --head_dim_vo 16",
    "one head": "--num_qo_heads 1 --num_kv_heads 1 --head_dim_qk 8 --head_dim_vo 20",
}


def problem(name, flags, q_dtype="bfloat16", kv_dtype="bfloat16"):
    paged = "--page_size 8" if name == PAGED else ""
    return problem_of(name, f"{paged} {flags} --q_dtype {q_dtype} --kv_dtype {kv_dtype} --random_actual_seq_len")


def launch_for(name, case, made):
    return eager.paged(case, made, case.causal) if name == PAGED else eager.ragged(case, made)


def assert_right(name, flags, *dtypes):
    """By a stricter standard than that of kernels: FP8 is converted without loss, and only the output is rounded."""
    case, made = problem(name, flags, *dtypes)
    launch = launch_for(name, case, made)
    launch.kwargs["out"].fill_(math.nan)
    out = launch.outputs(launch())["out"]
    assert out.shape == (int(made["q_len"].sum()), case.num_qo_heads, case.head_dim_vo)
    assert out.dtype is case.out_dtype.torch
    within = for_attention([case.out_dtype] * 3, case.out_dtype).twice()
    finding = within.judge("out", {"out": out}, made.truth())
    assert finding.passed, finding


@pytest.mark.parametrize("name", [PAGED, RAGGED])
@pytest.mark.parametrize("causal", ["", "--causal"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_reference(name, shape, layout, causal):
    assert_right(name, f"{SHAPES[shape]} {LAYOUTS[layout]} {causal}")


@pytest.mark.parametrize("name", [PAGED, RAGGED])
@pytest.mark.parametrize(("q_dtype", "kv_dtype"), FORMATS)
@pytest.mark.parametrize("causal", ["", "--causal"])
def test_it_is_the_reference_in_every_format(name, q_dtype, kv_dtype, causal):
    assert_right(name, f"{SHAPES['after a cache']} {LAYOUTS['groups']} {causal}", q_dtype, kv_dtype)


@pytest.mark.parametrize("name", [PAGED, RAGGED])
def test_without_a_mask_queries_may_be_longer_than_keys(name):
    assert_right(name, f"--batch_size 3 --s_qo 20 --s_kv 7 {LAYOUTS['groups']}")


@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_pages_of_any_size(page_size):
    assert_right(PAGED, f"{SHAPES['after a cache']} {LAYOUTS['groups']} --causal --page_size {page_size}")


@pytest.mark.parametrize("name", [PAGED, RAGGED])
@pytest.mark.parametrize("wrong", ["q", "k", "v"])
def test_each_scale_counts(name, wrong):
    """Of the launch, and in the check: a scale that is forgotten is a mismatch."""
    case, made = problem(name, f"--batch_size 4 --s_qo 9 --s_kv 30 {LAYOUTS['groups']}", *2 * ["fp8_e4m3"])
    launch = launch_for(name, case, made)
    scales = launch.kwargs["scales"]
    truth, outputs = made.truth(), {}
    for kind, used in (("right", scales), ("wrong", Scales(**{**vars(scales), wrong: 1.0}))):
        launch.fn(**{**launch.kwargs, "scales": used})
        outputs[kind] = launch.kwargs["out"].clone()
    assert made.checks["out"].judge("out", {"out": outputs["right"]}, truth).passed
    assert not made.checks["out"].judge("out", {"out": outputs["wrong"]}, truth).passed


@pytest.mark.parametrize(("name", "data"), [(PAGED, {"q", "k_cache", "v_cache"}), (RAGGED, {"q", "k", "v"})])
def test_the_call_has_the_problems_tensors_and_lengths_on_the_host(name, data):
    case, made = problem(name, f"{SHAPES['after a cache']} {LAYOUTS['groups']}")
    launch = launch_for(name, case, made)
    assert launch.mutates == ("out",)
    assert storages(made[tensor] for tensor in data) <= storages(launch.data())
    assert launch.kwargs["out"].untyped_storage().data_ptr() not in storages(made.tensors.values())
    for argument, tensor in (("q_lens", "q_len"), ("kv_lens", "kv_len")):
        assert launch.kwargs[argument] == made[tensor].tolist()


def test_a_decoded_sequence_of_several_queries_is_masked_to_the_end():
    flags = f"--batch_size 3 --s_qo 4 --s_kv 12 --page_size 5 {LAYOUTS['groups']} --random_actual_seq_len"
    case, made = problem_of("BatchDecodeWithPagedKVCacheWrapper", flags)
    check, truth = made.checks["out"], made.truth()
    for causal in (True, False):
        launch = eager.paged(case, made, causal)
        launch()
        assert check.judge("out", launch.kwargs, truth).passed is causal


NO_SCALES = Scales(1, 1, 1)


def one_sequence(q, keys, values, causal=False, scales=NO_SCALES, dtype=torch.float32, sm_scale=1.0):
    return eager.one_sequence(q, keys, values, causal, sm_scale, scales, dtype)


def test_one_sequence_by_hand():
    """Two keys of weight 3 : 1 by their scores."""
    q = torch.tensor([[[1.0]]])
    keys = torch.tensor([[[math.log(3)], [0.0]]])
    values = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    assert one_sequence(q, keys, values).flatten().tolist() == pytest.approx([3, 2])
    scaled = one_sequence(q / 2, keys / 3, values / 5, scales=Scales(2, 3, 5))
    assert scaled.flatten().tolist() == pytest.approx([3, 2])
    assert one_sequence(q, keys, values, sm_scale=0.0).flatten().tolist() == pytest.approx([2, 4])


@pytest.mark.parametrize(("q_len", "seen"), [(1, [4]), (2, [3, 4]), (4, [1, 2, 3, 4])])
def test_a_mask_is_aligned_to_the_end(q_len, seen):
    """The mean of the values of equally good keys."""
    values = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    found = one_sequence(torch.zeros(q_len, 1, 1), torch.zeros(1, 4, 1), values, causal=True)
    assert found.flatten().tolist() == pytest.approx([(1 + last) / 2 for last in seen])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_converted_without_loss(fp8, dtype):
    """Every finite number of the format, as the value of a single key."""
    numbers = torch.arange(256).to(torch.uint8).view(fp8)
    numbers = numbers[numbers.float().isfinite()]
    keys = torch.zeros(1, 1, 1, dtype=fp8)
    found = one_sequence(torch.zeros(1, 1, 1, dtype=fp8), keys, numbers.view(1, 1, -1), dtype=dtype)
    assert torch.equal(found.flatten().float(), numbers.float())


# ---- What it cannot do ----


@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype", "possible"),
    [
        *[(q, kv, True) for q, kv in FORMATS],
        ("bfloat16", "float16", False),
        ("float16", "bfloat16", False),
        ("fp8_e4m3", "bfloat16", False),
        ("fp8_e5m2", "float16", False),
    ],
)
def test_formats_that_it_takes(q_dtype, kv_dtype, possible):
    class Formats:
        pass

    Formats.q_dtype, Formats.kv_dtype = DType(q_dtype), DType(kv_dtype)
    reason = eager.torch_formats.unmet(Machine("cpu", "cpu"), Formats)
    assert (reason is None) is possible
    assert possible or "kv_dtype the same as q_dtype, or FP8" in reason


@pytest.mark.parametrize("name", [PAGED, RAGGED])
def test_through_the_engine(name):
    flags = f"{SHAPES['prompt']} {LAYOUTS['heads']} {'--page_size 4' if name == PAGED else ''} --causal"
    assert_passes(run(name, flags, "torch"))
    refused = run(name, f"{flags} --q_dtype fp8_e4m3", "torch")
    assert refused.status is Status.UNSUPPORTED
