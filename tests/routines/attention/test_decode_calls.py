"""Decoding: what each backend calls, and FlashInfer's own Python up to its kernels."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines.attention import backends, xqa
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from tests.contract import contract, covers
from tests.routines.attention import compiled_decode
from tests.routines.harness import assert_passes, launch_of, problem_of, routine_named, run, unconditional

NAME = "BatchDecodeWithPagedKVCacheWrapper"
API = "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper"
CASE = "--batch_size 3 --s_kv 60 --page_size 16 --num_qo_heads 4 --num_kv_heads 2 --head_dim_qk 128"
CASE += " --random_actual_seq_len"
SAME = ["bfloat16 bfloat16", "float16 float16"]
E4M3_CACHE = ["bfloat16 fp8_e4m3", "float16 fp8_e4m3"]
MIXED = [*E4M3_CACHE, "bfloat16 fp8_e5m2", "float16 fp8_e5m2"]
ALL_FP8 = ["fp8_e4m3 fp8_e4m3"]
SCALES = {f"{operand}_scale": LARGEST[operand] / E4M3_MAX for operand in "qkv"}
TORCH = {name: getattr(torch, name.replace("fp8_e4m3", "float8_e4m3fn").replace("fp8_e5m2", "float8_e5m2"))
         for name in " ".join(SAME + MIXED).split()}  # fmt: skip


def flags_of(formats, more=""):
    q, kv = formats.split()
    return f"{CASE} --q_dtype {q} --kv_dtype {kv} {more}"


def torch_formats(formats):
    """Of the query, of the cache, and of the output."""
    q, kv = (TORCH[name] for name in formats.split())
    return q, kv, torch.bfloat16 if q.itemsize == 1 else q


def scales_for(formats):
    return {name: value for name, value in SCALES.items() if "fp8" in formats.split()[name != "q_scale"]}


@pytest.fixture(autouse=True)
def _small_workspaces(monkeypatch):
    """128 MiB of zeros cost more than all else."""
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


# ---- The calls of the library ----


WRAPPERS = {
    "fa2": ("fa2", False, [*SAME, *MIXED]),
    "fa2_tc": ("fa2", True, [*SAME, *MIXED]),
    "fa3": ("fa3", True, [*SAME, *ALL_FP8]),
    "auto": ("auto", True, [*SAME, *MIXED, *ALL_FP8]),
    "cudnn": ("cudnn", False, SAME),
    "trtllm-gen": ("trtllm-gen", True, [*SAME, "bfloat16 fp8_e4m3", *ALL_FP8]),
}
WRAPPED = [(name, formats) for name, (_, _, all_formats) in WRAPPERS.items() for formats in all_formats]


@covers(NAME, *WRAPPERS)
@pytest.mark.parametrize("more", ["", "--s_qo 3 --enable_pdl"])
@pytest.mark.parametrize(("name", "formats"), WRAPPED)
def test_the_wrapper_is_called_as_it_declares(name, formats, more):
    backend, tensor_cores, _ = WRAPPERS[name]
    with contract(API, plan=None, run=lambda **call: call["out"], resolved_backend=backend) as wrapper:
        launch, problem = launch_of(NAME, name, flags_of(formats, more))
        returned = launch()
    made, plan, call = wrapper.instance.made_with, wrapper.instance.plan.call, wrapper.instance.run.call
    q_dtype, kv_dtype, out_dtype = torch_formats(formats)
    workspace = made.pop("float_workspace_buffer")
    assert not workspace.any()
    assert made == {"kv_layout": "HND", "use_tensor_cores": tensor_cores, "backend": backend}
    planned = {"indptr": "kv_indptr", "indices": "kv_indices", "last_page_len": "kv_last_page_len"}
    planned["block_tables"] = "block_tables"
    assert all(plan.pop(name) is problem[tensor] for name, tensor in planned.items())
    assert plan == {
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 128,
        "page_size": 16,
        "q_data_type": q_dtype,
        "kv_data_type": kv_dtype,
        "o_data_type": out_dtype,
        "sm_scale": 1 / math.sqrt(128),
        "q_len_per_req": 3 if more else 1,
    }
    keys, values = call.pop("paged_kv_cache")
    assert (keys is problem["k_cache"], values is problem["v_cache"]) == (True, True)
    assert call.pop("q") is problem["q"]
    assert_output(call.pop("out"), problem["q"], out_dtype)
    assert call == {**scales_for(formats), "enable_pdl": bool(more)}
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert (launch.mutates, launch.scratch, launch.facts["plan_ms"] >= 0) == (("out",), (), True)


def assert_output(out, query, dtype):
    assert (out.shape, out.dtype, out.is_contiguous()) == (query.shape, dtype, True)


@pytest.mark.parametrize(
    ("name", "resolved", "said"),
    [
        ("fa2", "fa2", "fa2"),
        ("fa2_tc", "fa2", "fa2_tc"),
        ("fa3", "fa3", "fa3"),
        ("auto", "fa2", "fa2_tc"),
        ("auto", "fa3", "fa3"),
        ("auto", "cudnn", "cudnn"),
        ("cudnn", "cudnn", "cudnn"),
    ],
)
def test_what_really_runs_is_said(name, resolved, said):
    with contract(API, plan=None, run=lambda **call: call["out"], resolved_backend=resolved):
        assert launch_of(NAME, name, CASE)[0].resolved_backend == said


@pytest.mark.parametrize("formats", [SAME[0], ALL_FP8[0]])
def test_keys_and_values_are_the_documented_views_of_one_pool(formats):
    """Of (pages, 2, heads, page size, dim): the fastest after the elements are the heads, then the tokens."""
    _, problem = problem_of(NAME, flags_of(formats))
    keys, values = problem["k_cache"], problem["v_cache"]
    heads, page, dim = 2, 16, 128
    assert keys.shape == values.shape == (3 * 4, heads, page, dim)
    assert keys.stride() == values.stride() == (2 * page * heads * dim, dim, heads * dim, 1)
    assert values.storage_offset() - keys.storage_offset() == page * heads * dim
    assert values.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()
    assert problem["block_tables"].dtype is problem["kv_indptr"].dtype is torch.int32
    assert problem["kv_len"].dtype is problem["kv_indices"].dtype is problem["kv_last_page_len"].dtype is torch.int32


NATIVE_FORMATS = [*SAME, *E4M3_CACHE, *ALL_FP8]


@covers(NAME, "trtllm-native")
@pytest.mark.parametrize("more", ["", "--s_qo 3 --enable_pdl"])
@pytest.mark.parametrize("formats", NATIVE_FORMATS)
def test_trtllm_native_is_called_as_it_declares(formats, more):
    with contract("flashinfer.decode.trtllm_batch_decode_with_kv_cache", lambda **call: call["out"]) as kernel:
        launch, problem = launch_of(NAME, "trtllm-native", flags_of(formats, more))
        returned = launch()
    call, scales = dict(kernel.call), {**dict.fromkeys(SCALES, 1.0), **scales_for(formats)}
    tensors = {"query": "q", "block_tables": "block_tables", "seq_lens": "kv_len"}
    assert all(call.pop(name) is problem[tensor] for name, tensor in tensors.items())
    keys, values = call.pop("kv_cache")
    assert (keys is problem["k_cache"], values is problem["v_cache"]) == (True, True)
    assert_output(call.pop("out"), problem["q"], torch_formats(formats)[2])
    assert not call.pop("workspace_buffer").any()
    mask = call.pop("mask")
    assert mask is None if not more else torch.equal(mask, xqa.causal_bits(3, 3, "cpu"))
    assert call == {
        "max_seq_len": 60,
        "bmm1_scale": pytest.approx(scales["q_scale"] * scales["k_scale"] / math.sqrt(128)),
        "bmm2_scale": scales["v_scale"],
        "kv_layout": "HND",
        "backend": "auto",
        "enable_pdl": bool(more),
        "q_len_per_req": 3 if more else 1,
    }
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert launch.scratch == ("workspace_buffer",)


@covers(NAME, "cudnn-native")
@pytest.mark.parametrize("more", ["", "--s_qo 3"])
@pytest.mark.parametrize("formats", SAME)
@pytest.mark.parametrize("dim_vo", [128, 64])
def test_cudnn_native_is_called_as_it_declares(formats, more, dim_vo):
    with contract("flashinfer.decode.cudnn_batch_decode_with_kv_cache", lambda **call: call["out"]) as kernel:
        launch, problem = launch_of(NAME, "cudnn-native", flags_of(formats, f"{more} --head_dim_vo {dim_vo}"))
        returned = launch()
    call = dict(kernel.call)
    for name in ("q", "k_cache", "v_cache", "block_tables"):
        assert call.pop(name) is problem[name]
    lengths = call.pop("actual_seq_lens_kv")
    assert (lengths.shape, lengths.dtype) == ((3, 1, 1, 1), torch.int32)
    assert lengths.flatten().tolist() == problem["kv_len"].tolist()
    assert_output(call.pop("out"), problem["q"][..., :dim_vo], torch_formats(formats)[2])
    call.pop("workspace_buffer")
    assert call == {
        "scale": 1 / math.sqrt(128),
        "max_sequence_kv": 60,
        "is_cuda_graph_compatible": True,
        "q_len_per_req": 3 if more else 1,
    }
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert launch.scratch == ("workspace_buffer",)


def test_workspaces_have_the_recommended_size_and_are_zero(monkeypatch):
    monkeypatch.undo()
    workspace = backends.workspace(torch.device("cpu"))
    assert (workspace.nbytes, workspace.dtype, bool(workspace.any())) == (128 << 20, torch.uint8, False)


# ---- FlashInfer's own Python, up to its kernels ----

HOPPER = Machine("cuda:0", "NVIDIA H200", (9, 0))
SEVERAL = "--s_qo 3"
RUNS = [
    ("fa2", "cuda cores", [*SAME, *MIXED], [""]),
    ("fa2_tc", "fa2", [*SAME, *MIXED], ["", SEVERAL]),
    ("fa3", "fa3", [*SAME, *ALL_FP8], [""]),
    ("auto", "fa2", [*SAME, *MIXED], ["", SEVERAL]),
    ("auto", "fa3", ALL_FP8, [""]),
    ("trtllm-native", "xqa", [*SAME, *E4M3_CACHE], ["", SEVERAL, "--s_qo 33"]),
]
ON_HOPPER = [
    (name, kernel, formats, more)
    for name, kernel, all_formats, all_more in RUNS
    for formats, more in itertools.product(all_formats, all_more)
]


@pytest.mark.parametrize(("name", "kernel", "formats", "more"), ON_HOPPER)
def test_flashinfers_own_code_accepts_the_plan_and_the_run(monkeypatch, name, kernel, formats, more):
    """Right outputs come of what reaches its kernels, and the requirements admit the case."""
    made = compiled_decode.install(monkeypatch)
    assert admitted(name, flags_of(formats, more))
    with warnings.catch_warnings(), unconditional(NAME, name):
        warnings.simplefilter("error")
        record = run(NAME, flags_of(formats, f"{more} --enable_pdl"), name)
    assert_passes(record)
    assert set(made.modules) == {kernel}
    assert set(made.pdl) == {True}
    assert record.resolved_backend == {"cuda cores": "fa2", "fa2": "fa2_tc", "fa3": "fa3", "xqa": name}[kernel]


def admitted(name, flags):
    """Whether its requirements are met on an H200, packages aside."""
    case, _ = problem_of(NAME, flags)
    found = [need.unmet(HOPPER, case) for need in routine_named(NAME).backends[name].requires if not need.on_package]
    return not any(found)


@pytest.mark.parametrize("name", ["fa2", "fa2_tc", "fa3", "auto", "trtllm-native"])
@pytest.mark.parametrize(
    "more",
    [
        "--page_size 64 --s_kv 1 --batch_size 1",
        "--page_size 16 --s_kv 64 --no-random_actual_seq_len",
        "--page_size 128 --s_kv 130",
        "--num_qo_heads 6 --num_kv_heads 6 --head_dim_qk 64",
        "--num_qo_heads 8 --num_kv_heads 1 --head_dim_qk 256",
    ],
)
def test_flashinfers_own_code_accepts_other_shapes(monkeypatch, name, more):
    compiled_decode.install(monkeypatch)
    assert admitted(name, f"{CASE} {more}")
    with unconditional(NAME, name):
        assert_passes(run(NAME, f"{CASE} {more}", name))


@pytest.mark.parametrize("name", ["fa2", "fa2_tc", "fa3", "auto", "trtllm-native"])
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
def test_pdl_and_strides_reach_the_kernel(monkeypatch, name, pdl):
    """Where the library would choose PDL by itself, what the flag says is done."""
    made = compiled_decode.install(monkeypatch)
    with unconditional(NAME, name):
        assert_passes(run(NAME, f"{CASE} {pdl}", name))
    assert set(made.pdl) == {bool(pdl)}
    page, heads, dim = 16, 2, 128
    assert set(made.layouts) == {(2 * page * heads * dim, dim, heads * dim, 1)}
